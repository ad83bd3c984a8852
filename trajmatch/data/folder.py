"""A user's own data set from image files in one folder per class."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trajmatch.data.dataset import Dataset
from trajmatch.data.reading import check_folder
from trajmatch.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

_TEST_FOLDERS = ("test", "val")
_GREY = ("1", "L", "LA")
# Sixteen bits or floating point in one channel: 8 bits of it would lose what the user has.
_DEEP = ("I", "F")
# All that Pillow raises for files that are damaged or of another kind; a decompression bomb is one
# more, but can only be named where Pillow is imported.
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error)


class _Labelled(NamedTuple):
    path: Path
    label: int


def load(root: Path) -> Dataset:
    """Loads every image file under ``root/train/CLASS`` and ``root/test/CLASS`` (or ``val``).

    Classes are the subfolders of ``train`` in alphabetical order; within a class, files are taken
    in alphabetical order. Hidden files are left out; every other file must be an image, and all
    images must be square and of one size. The set is grey where all images are, else RGB.

    Args:
        root: The folder.

    Returns:
        The data set, named after the folder.

    Raises:
        OSError: A folder cannot be read.
        UserError: The folders are not as described, or a file cannot be used.
    """
    check_folder(root)
    train, test = (
        root / "train",
        next((root / name for name in _TEST_FOLDERS if (root / name).is_dir()), None),
    )
    if not train.is_dir() or test is None:
        present = ", ".join(path.name for path in _entries(root)) or "nothing"
        raise UserError(
            f"{root} should hold train/CLASS/IMAGE and test/CLASS/IMAGE (or val), but holds "
            f"{present}; sort the images into those folders"
        )
    names = [path.name for path in _entries(train)]
    train_files, test_files = _list_files(train, names), _list_files(test, names)
    size, colour = _inspect([*train_files, *test_files])
    return Dataset.from_arrays(
        root.resolve().name,
        *_decode(train_files, size, colour),
        *_decode(test_files, size, colour),
        class_names=names,
    )


def _entries(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))


def _list_files(split: Path, names: list[str]) -> list[_Labelled]:
    files = []
    for entry in _entries(split):
        if not entry.is_dir():
            raise UserError(
                f"{entry} is a file where a folder of images of one class was expected; "
                "move it into the folder of its class, or away"
            )
        if entry.name not in names:
            raise UserError(
                f"{entry} is no class of the training set ({', '.join(names) or 'it has none'}); "
                "the folders of both must have the same names"
            )
        label = names.index(entry.name)
        files += [_Labelled(path, label) for path in _entries(entry)]
    if not files:
        raise UserError(f"{split} holds no images; put them into one folder per class there")
    return files


def _inspect(files: list[_Labelled]) -> tuple[int, bool]:
    """Side of the images in pixels, and whether any of them has colour, from the files' heads."""
    size, colour = 0, False
    for path, _ in files:
        with _opened(path) as image:
            width, height = image.size
            size = size or width
            colour = colour or image.mode not in _GREY
            if width != height:
                raise UserError(
                    f"{path} should be square, but is {width} pixels wide and {height} high; "
                    "crop or resize the images"
                )
            if width != size:
                raise UserError(
                    f"{path} is {width} x {width} pixels, but {files[0].path} is {size} x {size}; "
                    "all images should have one size: resize them"
                )
            if image.mode.startswith(_DEEP):
                raise UserError(
                    f"{path} should have 8 bits a channel, but its mode is {image.mode}; convert it"
                )
    return size, colour


def _decode(files: list[_Labelled], size: int, colour: bool) -> tuple[Tensor, Tensor]:
    """Images ``[N, C, size, size]``, uint8, and labels ``[N]``."""
    images = np.empty((len(files), 3 if colour else 1, size, size), np.uint8)
    for index, (path, _) in enumerate(files):
        with _opened(path) as image:
            pixels = np.asarray(_opaque(path, image).convert("RGB" if colour else "L"))
        images[index] = pixels.reshape(size, size, -1).transpose(2, 0, 1)
    return torch.from_numpy(images), torch.tensor([label for _, label in files])


def _opaque(path: Path, image: Image) -> Image:
    """The image without its alpha channel, which may say nothing."""
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    if min(image.getchannel("A").tobytes()) < 255:
        raise UserError(f"{path} is transparent in places; put it on a background first")
    return image.convert("RGB")


@contextmanager
def _opened(path: Path) -> Iterator[Image]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            yield image
    except UserError:
        raise
    except (*_UNREADABLE, Image.DecompressionBombError) as error:
        raise UserError(
            f"{path} cannot be read as an image ({error}); mend it or move it away"
        ) from error
