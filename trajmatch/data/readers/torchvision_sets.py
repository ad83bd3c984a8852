"""Data sets read and downloaded by torchvision: known sets by name, others by class."""

import fcntl
import inspect
import operator
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from trajmatch.data.address import Address, Source
from trajmatch.data.dataset import Dataset
from trajmatch.data.decode import Picture, load_pictures
from trajmatch.data.known_sets import KNOWN_SETS, Binary, KnownSet
from trajmatch.data.options import ArrayOptions, ImageOptions, PartOptions, choose_classes, nearest
from trajmatch.data.parts import TEST, TRAIN
from trajmatch.data.readers.arrays import CLASS_NAMES, KEYS, from_arrays
from trajmatch.errors import UserError
from trajmatch.memory import check_memory

# Sets in pickles without known checksums: reading a pickle can run code. CIFAR's pickles are opened
# only if their MD5 sums match the official files.
_UNSAFE = ("LSUN", "LSUNClass")
# Usual values of ``split`` for training and test, in order of preference.
_SPLITS = ((*TRAIN, "trainval", "train-standard"), TEST)

_PIXELS = 3 * 32 * 32  # of an image of CIFAR's binary version

_Bytes = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True, kw_only=True)
class TorchvisionOptions(ImageOptions, PartOptions):
    """Options of a torchvision set.

    The options ``train`` and ``test`` name its two parts. The torchvision class gets these names as
    its argument ``split``.

    Attributes:
        download: True to download missing files.
        split: For torchvision classes that have both arguments, ``train`` and ``split`` (EMNIST):
            the value of ``split`` for both parts.
    """

    download: bool = False
    split: str | None = None


def load(address: Address, options: TorchvisionOptions) -> Dataset:
    """Load a known set by name, or any other set by its class in ``torchvision.datasets``.

    The path is torchvision's root folder; for a known set, it may also be the folder that holds the
    files. MNIST and Fashion-MNIST may be gzipped. Without a test part, a part of each class
    becomes the test set. SVHN's extra training images are left out, as in the papers.
    """
    what, known = address.base, KNOWN_SETS.get(address.scheme, KnownSet())
    with _explained(address, options):
        parts = _read(address, known, options)
        labels = [_labels(what, part) for part in parts]
    # The labels of sets without known classes may have gaps; ``place`` renumbers the labels in
    # ascending order.
    present = [*range(len(known.classes))] or np.unique(labels[0]).tolist()
    names = list(known.classes) or _class_names(parts[0], present)
    count = len(names)  # unknown labels become >= count, so that checks find them
    place = {old: label for label, old in enumerate(present)}
    labels = [[place.get(each, max(each, count)) for each in given] for given in labels]
    # Fast path: sets that are arrays already have no images to decode.
    if options.size is None and len(parts) == 2 and all(map(_is_array, parts)):
        train, test = (
            (np.asarray(part.data), np.array(y)) for part, y in zip(parts, labels, strict=True)
        )
        arrays = dict(zip((*KEYS[0], CLASS_NAMES), (*train, *test, np.array(names)), strict=True))
        return from_arrays(what, address.scheme, arrays, ArrayOptions(classes=options.classes))
    chosen = choose_classes(what, names, options.classes)
    new = {old: label for label, old in enumerate(chosen)}
    places = (f"{what}, training image", f"{what}, test image")
    # Unknown labels (>= count) are kept, so that Dataset reports them.
    pictures = [
        [
            Picture(new.get(label, label), partial(_picture, part, index), f"{where} {index}")
            for index, label in enumerate(given)
            if label in new or label >= count
        ]
        for where, part, given in zip(places, parts, labels, strict=False)
    ]
    chosen_names = [names[index] for index in chosen]
    return load_pictures(what, address.scheme, pictures, chosen_names, options, options.fraction)


def found_in(address: Address) -> bool:
    """Return True if a folder has files of the known set."""
    known, root = KNOWN_SETS[address.scheme], address.place
    files = any((root / name).is_file() for name in known.files)
    return files or bool(known.binary and _binary_folder(known.binary, root))


def _read(address: Address, known: KnownSet, options: TorchvisionOptions) -> Sequence[Any]:
    """Return the parts of a set; the files of a known set may lie directly in the folder."""
    root = address.place
    if known.binary and (folder := _binary_folder(known.binary, root)):
        binary = known.binary
        return [_read_binary(binary, folder, names) for names in (binary.train, binary.test)]
    kind = _class_of(known.torchvision or address.scheme.partition(":")[2])
    files = (root / name for name in (*known.files, *known.more_files))
    if file := next(filter(Path.is_file, files), None):
        # If local files are unusable, ?download=true falls through to a new download.
        repaired = [Exception] if options.download else []
        with tempfile.TemporaryDirectory() as unpacked, suppress(*repaired):
            raw = _unpack(kind, file.parent, unpacked) if file.suffix == ".gz" else file.parent
            # CIFAR's classes look in ``base_folder`` below the root and MNIST's in ``raw_folder``;
            # this subclass looks in the folder that has the files.
            there = type(kind.__name__, (kind,), {"base_folder": "", "raw_folder": str(raw)})
            return _parts(there, file.parent, replace(options, download=False))
    return _parts(kind, root, options)


@dataclass(frozen=True)
class _BinaryPart:
    """Images ``data [N, 3, 32, 32]`` and labels ``targets [N]``, uint8; names as in torchvision."""

    data: _Bytes
    targets: _Bytes

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.data[index].transpose(1, 2, 0)), int(self.targets[index])


def _binary_folder(binary: Binary, root: Path) -> Path | None:
    """Find the folder with the files: the archive's folder in ``root``, or ``root``, or None."""
    folders = (root / binary.folder, root)
    files = (*binary.train, *binary.test)
    return next((f for f in folders if any((f / name).is_file() for name in files)), None)


def _read_binary(binary: Binary, folder: Path, names: Sequence[str]) -> _BinaryPart:
    """Read CIFAR's binary version: records of one or two label bytes and 3 x 32 x 32 pixels."""
    length = binary.label_bytes + _PIXELS
    sizes = [(folder / name).stat().st_size for name in names]
    if len({*sizes}) > 1 or sizes[0] == 0 or sizes[0] % length:
        raise UserError(
            f"{', '.join(names)} in {folder} should be of one size and hold records of {length} "
            f"bytes, but have {', '.join(map(str, sizes))} bytes; unpack the archive again"
        )
    check_memory(f"the {sum(sizes)} bytes of {folder}", sum(sizes), "free some memory")
    records = np.concatenate([np.fromfile(folder / name, np.uint8) for name in names])
    records = records.reshape(-1, length)
    # CIFAR-100 has two label bytes, superclass and class; the class comes last. The pixels are a
    # red, a green and a blue plane.
    images = records[:, binary.label_bytes :].reshape(-1, 3, 32, 32)
    return _BinaryPart(images, records[:, binary.label_bytes - 1])


def _class_of(name: str) -> Any:
    """Return the torchvision class; raise UserError if it is not an image classification set."""
    from trajmatch._torchvision import torchvision

    if name not in torchvision.datasets.__all__:
        hint = nearest(name, torchvision.datasets.__all__)
        raise UserError(f"torchvision has no data set {name!r}; {hint}")
    if name in _UNSAFE:
        raise UserError(f"torchvision:{name} is not read: files of that set can run code")
    kind = getattr(torchvision.datasets, name)
    arguments = inspect.signature(kind).parameters
    needed = {each.name for each in arguments.values() if each.default is each.empty}
    # ``transforms`` acts on images and targets together, so the targets are boxes, masks or images.
    # OxfordIIITPet takes it too, but has labels unless ``target_types`` asks for masks.
    boxes_or_masks = "transforms" in arguments and "target_types" not in arguments
    if "root" not in arguments or needed - {"root", "split", "kwargs"} or boxes_or_masks:
        raise UserError(f"torchvision:{name} is not a data set for classification")
    return kind


def _arguments(kind: Any) -> set[str]:
    """Return a class's argument names, with those of its base class if it takes ``**kwargs``."""
    own = inspect.signature(kind.__init__).parameters
    return {*own} | (_arguments(kind.__base__) if "kwargs" in own else set())


def _parts(kind: Any, root: Path, options: TorchvisionOptions) -> list[Any]:
    """Return the training part and, if there is one, the test part."""
    known = _arguments(kind)
    by_train = "train" in known
    by_split = "split" in known and not by_train
    # Options that the class can use; any other option raises an error instead of being ignored.
    taken = {
        "train": by_split,
        "test": by_split if options.fraction is None else not (by_train or by_split),
        "split": by_train and "split" in known,
        "download": "download" in known,
    }
    for name, takes in taken.items():
        given = getattr(options, name)
        if given and not takes:
            raise UserError(f"torchvision:{kind.__name__} takes no ?{name}={given}; leave it out")
    # With ``Path`` as loader, torchvision opens no image file: the items hold paths instead, and
    # the images are decoded later.
    arguments = {"root": str(root), "download": options.download, "loader": Path}
    arguments = {name: value for name, value in arguments.items() if name in known}
    if by_train:
        # Without ?split=, torchvision refuses "" with a message that lists the valid values.
        split = {"split": options.split or ""} if taken["split"] else {}
        return [kind(train=train, **split, **arguments) for train in (True, False)]
    if by_split:
        named = (options.train, options.test)
        splits = [[name] if name else usual for name, usual in zip(named, _SPLITS, strict=True)]
        return [_part(kind, names, arguments) for names in splits]
    return [kind(**arguments)]


def _part(kind: Any, splits: Sequence[str], arguments: dict[str, Any]) -> Any:
    """Return the part of the first split that the class knows."""
    for split in splits:
        try:
            return kind(split=split, **arguments)
        except ValueError as error:
            # An error that names ``split`` means that this split does not exist: try the next one.
            if "split" not in str(error) or split == splits[-1]:
                raise


def _unpack(kind: Any, folder: Path, place: str) -> str:
    """Unpack the official gzip files of MNIST or Fashion-MNIST into the folder ``place``."""
    from trajmatch._torchvision import torchvision

    for name, md5 in kind.resources:
        if not torchvision.datasets.utils.check_integrity(folder / name, md5):
            raise RuntimeError(f"{folder / name} is missing or is not the official file")
        torchvision.datasets.utils.extract_archive(folder / name, place)
    return place


def _is_array(part: Any) -> bool:
    """Return True if the images of a part are one array."""
    return isinstance(getattr(part, "data", None), np.ndarray | torch.Tensor)


def _labels(what: str, part: Any) -> list[int]:
    """Return the labels of a part; raise UserError unless it has pictures with one label each."""
    labels: Any = getattr(part, "targets", getattr(part, "labels", None))
    if _is_array(part) and np.ndim(labels) == 1:
        return list(map(int, labels))
    picture = None
    # The first item shows if the set is for classification: other sets have other items, or fail.
    with suppress(TypeError, ValueError, NotImplementedError):
        picture, label = part[0]
        label = operator.index(label)
    if not isinstance(picture, Path | Image.Image) or not isinstance(label, int):
        raise UserError(
            f"{what} is not a data set for classification: it has no pictures with one label each"
        )
    return [operator.index(part[index][1]) for index in range(len(part))]


def _picture(part: Any, index: int) -> Any:
    return part[index][0]


def _class_names(part: Any, present: Sequence[int]) -> list[str]:
    """Return torchvision's class names if they are unique, else the labels as names."""
    names = getattr(part, "classes", ())
    if max(present) < len(names):
        chosen = [names[label] for label in present]
        chosen = [name if isinstance(name, str) else name[0] for name in chosen]  # first synonym
        if len({*chosen}) == len(chosen):
            return chosen
    return [str(label) for label in present]


@contextmanager
def _explained(address: Address, options: TorchvisionOptions) -> Iterator[None]:
    """Convert all exceptions to UserError; lock the folder while downloading."""
    # The lock keeps two processes from downloading the same files; closing the folder releases it.
    folder = -1
    try:
        if options.download:
            address.place.mkdir(parents=True, exist_ok=True)
            folder = os.open(address.place, os.O_RDONLY)
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    except UserError:
        raise
    except Exception as error:
        # Cut off torchvision's advice to pass download=True, which is ?download=true here.
        told = str(error).partition(". You can use")[0] or type(error).__name__
        remedy = "put the official files there, or add ?download=true to the data's address"
        if options.download:
            remedy = "check the connection"
        raise UserError(f"{address.base} cannot be read ({told}); {remedy}") from error
    finally:
        if folder >= 0:
            os.close(folder)


SOURCES = {"torchvision": Source("NAME:ROOT", load)} | {
    name: Source("ROOT", load, found_in) for name, known in KNOWN_SETS.items() if known.torchvision
}
