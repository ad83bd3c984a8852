"""A user's own data set from image files in one folder per class."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from trajmatch.data import checks, decode
from trajmatch.data.dataset import Dataset
from trajmatch.data.decode import Labelled
from trajmatch.data.options import Options, choose_classes, composed
from trajmatch.data.parts import TEST, TRAIN, find_parts, say_left_out, split_parts
from trajmatch.data.reading import check_folder, files_below, visible
from trajmatch.errors import UserError

_LAYOUT = "train/CLASS/IMAGE and test/CLASS/IMAGE (or val), or CLASS/IMAGE"


def load(root: Path, options: Options) -> Dataset:
    """Load every image file of a folder.

    Either ``root/train/CLASS`` and ``root/test/CLASS`` (or ``val``, in any case and under the other
    usual names), or only ``root/train/CLASS``, or ``root/CLASS``; without test images, a part of
    each class becomes the test set, which is said. Classes are the subfolders in alphabetical
    order; the images of a class are all files in its folder and in the folders there, in the order
    of torchvision's ``ImageFolder``. Hidden files and those that systems make are left out, and so,
    with a warning, are files of other kinds. Without ``size`` all images must be square and of one
    size. The set is grey where all images are, else RGB.

    Args:
        root: The folder.
        options: ``classes``, ``train``, ``test`` and those of images count.

    Returns:
        The data set, named after the folder.

    Raises:
        OSError: A folder cannot be read.
        UserError: The folders are not as described, or a file cannot be used.
    """
    check_folder(root)
    train, test = _parts(root, options)
    present = [entry.name for entry in visible(train) if entry.is_dir()]
    if len(present) == 1 and found_in(train / present[0]):
        raise UserError(f"{train} holds a single folder; did you mean {train / present[0]}?")
    if present:
        checks.check_class_names(str(train), present)
    chosen = choose_classes(str(root), present, options.classes) if present else []
    names = [present[index] for index in chosen]
    train_files = _images_among(train, _list_files(train, present, names))
    if test is not None:
        test_files = _images_among(test, _list_files(test, present, names))
    else:
        _warn_of_parts(root, train_files)
        labels = torch.tensor([label for _, label in train_files])
        split = split_parts(str(root), labels, names, options.fraction)
        train_files, test_files = ([train_files[index] for index in each] for each in split)
    size, colour = decode.inspect([*train_files, *test_files], options)
    pairs = decode.decode(str(root), [train_files, test_files], size, options, colour=colour)
    return Dataset.from_arrays(root.resolve().name, *pairs[0], *pairs[1], class_names=names)


def found_in(root: Path) -> bool:
    """True if a folder has the layout of a data set.

    Args:
        root: The folder; it may be missing.
    """
    if not root.is_dir():
        return False
    entries = visible(root)
    return any(entry.name.casefold() in TRAIN and entry.is_dir() for entry in entries) or (
        len(entries) > 1 and all(entry.is_dir() for entry in entries)
    )


def _parts(root: Path, options: Options) -> tuple[Path, Path | None]:
    """Folders of the training and of the test images; None where there are no test images."""
    present = [entry.name for entry in visible(root)]
    folders = [name for name in present if (root / name).is_dir()]
    train, test = find_parts(str(root), folders, options)
    if train and (test or options.train or len(present) == 1):
        parts = [name for name in folders if name.casefold() in (*TRAIN, *TEST)]
        left_out = [name for name in parts if name not in (train, test)]
        say_left_out(str(root), left_out, options)
        return root / train, root / test if test else None
    # A folder with images in it is a class of that name.
    alone, named = train or test, isinstance(options.test, str)
    if (
        present
        and not named
        and (not alone or any(entry.is_file() for entry in visible(root / alone)))
    ):
        return root, None
    raise UserError(
        f"{root} should hold {_LAYOUT}, but holds {', '.join(present) or 'nothing'}; sort the "
        "images into those folders, or add ?train=NAME&test=NAME to the data's address"
    )


def _warn_of_parts(root: Path, files: list[Labelled]) -> None:
    """Warn if the folders of all classes hold the same folders, as parts of a data set would."""
    below: dict[int, set[str]] = {}
    for path, label in files:
        below.setdefault(label, set()).add(path.parent.name)
    first = below.get(0, set())
    if len(first) > 1 and len(below) > 1 and all(each == first for each in below.values()):
        warnings.warn(
            f"{root}: all {len(below)} classes hold the folders {', '.join(sorted(first)[:5])}; if "
            "these are the classes, name the parts: ?train=NAME&test=NAME",
            stacklevel=2,
        )


def _list_files(split: Path, present: list[str], names: list[str]) -> list[Labelled]:
    """Files of the classes in ``names``; ``present`` are all classes of the training images."""
    known = {composed(name): name for name in present}
    files = []
    for entry in visible(split):
        if not entry.is_dir():
            raise UserError(
                f"{entry} is a file where a folder of images of one class was expected; move it "
                "into the folder of its class, or away, or choose another part with ?test=NAME"
            )
        name = known.get(composed(entry.name))
        if name is None:
            raise UserError(
                f"{entry} is no class of the training set ({', '.join(present) or 'it has none'}); "
                "the folders of both must have the same names"
            )
        if name in names:
            files += [Labelled(path, names.index(name)) for path in files_below(entry)]
    return files


def _images_among(split: Path, files: list[Labelled]) -> list[Labelled]:
    """The files that are images by their ending or content; a damaged image counts as one."""
    images: list[Labelled] = []
    others: list[Labelled] = []
    for file in files:
        (images if decode.is_image(file.path) else others).append(file)
    if not images:
        raise UserError(f"{split} holds no images; put them into one folder per class there")
    if others:
        warnings.warn(
            f"{split}: {len(others)} of {len(files)} files are no images and are left out, for "
            f"example {others[0].path}",
            stacklevel=3,
        )
    return images
