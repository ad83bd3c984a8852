"""Data sets that torchvision reads and downloads: the usual ones by name, others by their class."""

from __future__ import annotations

import fcntl
import inspect
import operator
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trajmatch.data import cifar_binary
from trajmatch.data.address import Address, Source
from trajmatch.data.dataset import Dataset
from trajmatch.data.decode import Picture, load_pictures
from trajmatch.data.known_sets import KNOWN_SETS
from trajmatch.data.options import (
    DownloadOptions,
    ImageOptions,
    PartOptions,
    choose_classes,
    nearest,
)
from trajmatch.data.parts import TEST, TRAIN
from trajmatch.data.readers import npz
from trajmatch.errors import UserError

# Pickles, which run code when they are read, and no sum of these files is known. Those of CIFAR are
# opened only after their MD5 sums are found to be those of the authors' files.
_UNSAFE = ("LSUN", "LSUNClass")
# Values of ``split``, in the order of preference.
_SPLITS = ((*TRAIN, "trainval", "train-standard"), TEST)

_Arrays = dict[str, np.ndarray[Any, np.dtype[Any]]]


@dataclass(frozen=True, kw_only=True)
class TorchvisionOptions(ImageOptions, PartOptions, DownloadOptions):
    """Options of a class of torchvision.

    Attributes:
        split: Argument ``split`` of a class that tells training and test images apart by ``train``
            (EMNIST).
    """

    split: str | None = None


def load_known(address: Address, options: DownloadOptions) -> Dataset:
    """Load one of the usual sets from its official files.

    Args:
        address: The folder of the files, or the one in which torchvision puts them into a folder
            of their own; those of MNIST and Fashion-MNIST may be packed with gzip.
        options: All count.

    Returns:
        The data set, named after the scheme. Of SVHN the extra training images are left out, as in
        the papers.

    Raises:
        OSError: A file cannot be read.
        UserError: A file is missing, damaged, or another than the official one.
    """
    known = KNOWN_SETS[address.scheme]
    binary = known.binary and cifar_binary.find(known.binary, address.place)
    if known.binary and binary:
        arrays = cifar_binary.read(known.binary, binary)
    else:
        kind = _class_of(known.torchvision)
        with _explained(address, options):
            arrays = _known_arrays(kind, address, options)
    arrays[npz.CLASS_NAMES] = np.array(known.classes)
    return npz.from_arrays(address.base, address.scheme, arrays).of_classes(options.classes)


def found_in(address: Address) -> bool:
    """True if a folder has files of one of the usual sets."""
    known, root = KNOWN_SETS[address.scheme], address.place
    files = any((root / name).is_file() for name in known.files)
    return files or bool(known.binary and cifar_binary.find(known.binary, root))


def load(address: Address, options: TorchvisionOptions) -> Dataset:
    """Load a set by the name of its class in ``torchvision.datasets``.

    Args:
        address: ``torchvision:NAME``, and the argument ``root`` of the class.
        options: All count; parts are values of the argument ``split`` of the class.

    Returns:
        The data set, named after the class. Without a test part, a part of each class becomes the
        test set.

    Raises:
        UserError: There is no such class, it has no labelled pictures, or it cannot read or
            download its files.
    """
    what = address.base
    kind = _class_of(address.scheme.partition(":")[2])
    with _explained(address, options):
        parts = _parts(kind, address.place, options)
        arrays = _arrays(parts) if options.size is None and len(parts) == 2 else {}
        labels = [arrays[key].tolist() for key in ("y_train", "y_test") if key in arrays]
        labels = labels or [_labels(what, part) for part in parts]
    present = np.unique(labels[0]).tolist()
    names = _class_names(parts[0], present)
    if arrays:
        new = {old: label for label, old in enumerate(present)}
        arrays["y_train"], arrays["y_test"] = (
            np.array([new.get(label, -1) for label in each]) for each in labels
        )
        arrays[npz.CLASS_NAMES] = np.array(names)
        return npz.from_arrays(what, address.scheme, arrays).of_classes(options.classes)
    chosen = choose_classes(what, names, options.classes)
    new = {present[old]: label for label, old in enumerate(chosen)}
    pictures = [
        [
            Picture(new.get(label, -1), partial(_picture, part, index), f"{what}, {side} {index}")
            for index, label in enumerate(each)
            if label in new or label not in present
        ]
        for side, part, each in zip(("training image", "test image"), parts, labels, strict=False)
    ]
    names = [names[index] for index in chosen]
    return load_pictures(what, address.scheme, pictures, names, options, fraction=options.fraction)


def _class_of(name: str) -> Any:
    """The class of torchvision of a data set."""
    from trajmatch._torchvision import torchvision

    if name not in torchvision.datasets.__all__:
        hint = nearest(name, torchvision.datasets.__all__)
        raise UserError(f"torchvision has no data set {name!r}; {hint}")
    if name in _UNSAFE:
        raise UserError(f"torchvision:{name} is not read: files of that set can run code")
    kind = getattr(torchvision.datasets, name)
    arguments = inspect.signature(kind).parameters
    plain = {"root", "split", "kwargs"}
    needed = {each.name for each in arguments.values() if each.default is each.empty}
    if "root" not in arguments or needed - plain:
        raise UserError(f"torchvision:{name} is not a data set for classification")
    return kind


def _arguments(kind: Any) -> set[str]:
    """Names of the arguments of a class, with those of its base where it passes others on."""
    own = inspect.signature(kind.__init__).parameters
    return {*own} | (_arguments(kind.__base__) if "kwargs" in own else set())


def _parts(kind: Any, root: Path, options: TorchvisionOptions) -> list[Any]:
    """The training part of a set, and the test part if there is one."""
    known = _arguments(kind)
    by_train = "train" in known
    by_split = "split" in known and not by_train
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
    arguments = {"root": str(root), "download": options.download, "loader": Path}
    arguments = {name: value for name, value in arguments.items() if name in known}
    if by_train:
        split = {"split": options.split or ""} if taken["split"] else {}
        return [kind(train=train, **split, **arguments) for train in (True, False)]
    if by_split:
        named = (options.train, options.test)
        splits = [[name] if name else usual for name, usual in zip(named, _SPLITS, strict=True)]
        return [_part(kind, names, arguments) for names in splits]
    return [kind(**arguments)]


def _part(kind: Any, splits: Sequence[str], arguments: dict[str, Any]) -> Any:
    """The first of some splits that there is."""
    for split in splits:
        try:
            return kind(split=split, **arguments)
        except ValueError as error:
            if "split" not in str(error) or split == splits[-1]:
                raise


def _known_arrays(kind: Any, address: Address, options: DownloadOptions) -> _Arrays:
    """The arrays of one of the usual sets, whose files need not be where torchvision puts them."""
    known, root = KNOWN_SETS[address.scheme], address.place
    places = (root / name for name in (*known.files, *known.more_files))
    file = next((place for place in places if place.is_file()), None)
    if file is not None:
        with tempfile.TemporaryDirectory() as unpacked, _suppressed(options):
            if file.suffix == ".gz":
                _unpack(kind, file.parent, unpacked)
            raw = unpacked if file.suffix == ".gz" else str(file.parent)
            there = type(kind.__name__, (kind,), {"base_folder": "", "raw_folder": raw})
            return _arrays(_parts(there, file.parent, TorchvisionOptions()))
    return _arrays(_parts(kind, root, TorchvisionOptions(download=options.download)))


def _suppressed(options: DownloadOptions) -> suppress:
    """Let a set that cannot be read be downloaded again, if it may be."""
    return suppress(*([Exception] if options.download else []))


def _unpack(kind: Any, folder: Path, place: str) -> None:
    """Unpack the official files of MNIST or Fashion-MNIST."""
    from trajmatch._torchvision import torchvision

    for name, md5 in kind.resources:
        if not torchvision.datasets.utils.check_integrity(folder / name, md5):
            raise RuntimeError(f"{folder / name} is missing or is not the official file")
        torchvision.datasets.utils.extract_archive(folder / name, place)


def _arrays(parts: Sequence[Any]) -> _Arrays:
    """Arrays, as an ``.npz`` file has them, of parts that are kept as arrays; of others nothing."""
    found: _Arrays = {}
    for name, part in zip(("train", "test"), parts, strict=True):
        images = getattr(part, "data", None)
        labels: Any = getattr(part, "targets", getattr(part, "labels", None))
        if not isinstance(images, np.ndarray | torch.Tensor) or np.ndim(labels) != 1:
            return {}
        found |= {f"x_{name}": np.asarray(images), f"y_{name}": np.asarray(labels)}
    return found


def _labels(what: str, part: Any) -> list[int]:
    """The labels of a part whose items are pictures with a label."""
    from PIL import Image

    try:
        picture, label = part[0]
        operator.index(label)
    except (TypeError, ValueError, NotImplementedError):
        picture = None
    if not isinstance(picture, Path | Image.Image):
        raise UserError(
            f"{what} is not a data set for classification: it has no pictures with one label each"
        )
    return [operator.index(part[index][1]) for index in range(len(part))]


def _picture(part: Any, index: int) -> Any:
    """One picture, or its file."""
    return part[index][0]


def _class_names(part: Any, present: Sequence[int]) -> list[str]:
    """Names of the classes that have images: torchvision's if each has one, else the labels."""
    names = getattr(part, "classes", ())
    if max(present) < len(names):
        chosen = [names[label] for label in present]
        chosen = [name if isinstance(name, str) else name[0] for name in chosen]  # of synonyms
        if len({*chosen}) == len(chosen):
            return chosen
    return [str(label) for label in present]


@contextmanager
def _explained(address: Address, options: DownloadOptions) -> Iterator[None]:
    """Turn what torchvision raises into a message; of several processes let one download."""
    try:
        with _alone(address.place) if options.download else nullcontext():
            yield
    except UserError:
        raise
    except Exception as error:
        remedy = (
            "check the connection"
            if options.download
            else "put the official files there, or add ?download=true to the data's address"
        )
        told = str(error).partition(" You can use")[0] or type(error).__name__
        raise UserError(
            f"{address.base}: torchvision cannot read the set ({told}); {remedy}"
        ) from error


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Wait until no other process downloads into a folder."""
    root.mkdir(parents=True, exist_ok=True)
    folder = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


SOURCES = {
    "torchvision": Source("NAME:ROOT", load),
    **{
        name: Source("ROOT", load_known, found_in)
        for name, known in KNOWN_SETS.items()
        if known.torchvision
    },
}
