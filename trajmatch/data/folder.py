"""A user's own data set from image files in one folder per class."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from trajmatch.data import decode
from trajmatch.data.dataset import Dataset
from trajmatch.data.decode import Labelled
from trajmatch.data.options import Options, choose_classes
from trajmatch.data.reading import check_folder
from trajmatch.errors import UserError
from trajmatch.random import generator

#: Part of each class that becomes the test set where there is none and nothing else is said.
TEST_FRACTION = 0.25

_TEST_FOLDERS = ("test", "val")
_LAYOUT = "train/CLASS/IMAGE and test/CLASS/IMAGE (or val), or CLASS/IMAGE"


def load(root: Path, options: Options) -> Dataset:
    """Loads every image file of a folder.

    Either ``root/train/CLASS`` and ``root/test/CLASS`` (or ``val``), or only ``root/train/CLASS``,
    or ``root/CLASS``; without test images, a part of each class becomes the test set, which is
    said. Classes are the subfolders in alphabetical order; within a class, files are taken in
    alphabetical order. Hidden files are left out; every other file must be an image. Without
    ``size`` all images must be square and of one size. The set is grey where all images are, else
    RGB.

    Args:
        root: The folder.
        options: ``classes``, ``size`` and ``test`` count.

    Returns:
        The data set, named after the folder.

    Raises:
        OSError: A folder cannot be read.
        UserError: The folders are not as described, or a file cannot be used.
    """
    check_folder(root)
    train, test = _splits(root)
    if test is not None and options.test is not None:
        raise UserError(
            f"{root} has test images of its own, in {test.name}; leave out ?test={options.test:g}"
        )
    present = [entry.name for entry in _entries(train) if entry.is_dir()]
    chosen = choose_classes(str(root), present, options.classes) if present else []
    names = [present[index] for index in chosen]
    train_files = _list_files(train, present, names)
    if test is not None:
        test_files = _list_files(test, present, names)
    else:
        train_files, test_files = _split(root, train_files, names, options.test)
    every = [*train_files, *test_files]
    if options.size is None:
        size, colour = decode.inspect(every)
    else:
        size, colour = options.size, decode.any_colour(every)
    upright = options.size is not None
    return Dataset.from_arrays(
        root.resolve().name,
        *decode.decode(train_files, size, colour=colour, upright=upright),
        *decode.decode(test_files, size, colour=colour, upright=upright),
        class_names=names,
    )


def found_in(root: Path) -> bool:
    """Whether a folder has the layout of a data set.

    Args:
        root: The folder; it may be missing.
    """
    if not root.is_dir():
        return False
    entries = _entries(root)
    return (root / "train").is_dir() or (len(entries) > 1 and all(e.is_dir() for e in entries))


def stratified_split(
    what: str, labels: Tensor, names: Sequence[str], fraction: float
) -> tuple[Tensor, Tensor]:
    """Sets a part of each class aside as test images, always the same ones.

    Each class has a random stream of its own, and has an image on both sides at least.

    Args:
        what: Whose images they are, for messages.
        labels: ``[N]``, int64.
        names: Names of the classes.
        fraction: Part of each class to set aside, between 0 and 1.

    Returns:
        ``(train, test)``: indices into ``labels``, int64, each in ascending order.

    Raises:
        UserError: A class has a single image.
    """
    test = torch.zeros(len(labels), dtype=torch.bool)
    for label, name in enumerate(names):
        members = torch.nonzero(labels == label).flatten()
        if len(members) == 1:
            raise UserError(
                f"{what} has no test images, and class {name!r} a single image, which cannot be "
                "split into training and test; add images, or leave the class out"
            )
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        if count > 0:
            order = torch.randperm(len(members), generator=generator(0, "test split", label))
            test[members[order[:count]]] = True
    return torch.nonzero(~test).flatten(), torch.nonzero(test).flatten()


def say_split(what: str, test: int, every: int) -> None:
    """Says that test images were made of training images, where nobody asked for it.

    Args:
        what: Whose images they are.
        test: How many became test images.
        every: How many there are.
    """
    warnings.warn(
        f"{what} has no test images: {test} of its {every} images, the same ones every time, are "
        f"used for testing and not for training; ?test=FRACTION sets another part than "
        f"{TEST_FRACTION:g} aside",
        stacklevel=2,
    )


def _splits(root: Path) -> tuple[Path, Path | None]:
    """Folders of the training and of the test images; None where there are no test images."""
    present = _entries(root)
    train = root / "train"
    test = next((root / name for name in _TEST_FOLDERS if (root / name).is_dir()), None)
    if train.is_dir() and (test is not None or len(present) == 1):
        return train, test
    if present and not train.is_dir() and test is None:
        return root, None
    raise UserError(
        f"{root} should hold {_LAYOUT}, but holds "
        f"{', '.join(path.name for path in present) or 'nothing'}; sort the images into those "
        "folders"
    )


def _split(
    root: Path, files: list[Labelled], names: list[str], fraction: float | None
) -> tuple[list[Labelled], list[Labelled]]:
    labels = torch.tensor([label for _, label in files])
    train, test = stratified_split(
        str(root), labels, names, TEST_FRACTION if fraction is None else fraction
    )
    if fraction is None:
        say_split(str(root), len(test), len(files))
    return [files[index] for index in train], [files[index] for index in test]


def _entries(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))


def _list_files(split: Path, present: list[str], names: list[str]) -> list[Labelled]:
    """Files of the classes in ``names``; ``present`` are all classes of the training images."""
    files = []
    for entry in _entries(split):
        if not entry.is_dir():
            raise UserError(
                f"{entry} is a file where a folder of images of one class was expected; "
                "move it into the folder of its class, or away"
            )
        if entry.name not in present:
            raise UserError(
                f"{entry} is no class of the training set ({', '.join(present) or 'it has none'}); "
                "the folders of both must have the same names"
            )
        if entry.name in names:
            files += [Labelled(path, names.index(entry.name)) for path in _entries(entry)]
    if not files:
        raise UserError(f"{split} holds no images; put them into one folder per class there")
    return files
