"""A user's own data set from NumPy arrays in one ``.npz`` file."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from trajmatch.data.dataset import Dataset
from trajmatch.errors import UserError

#: Names of the arrays, in either of two ways.
KEYS = (
    ("x_train", "y_train", "x_test", "y_test"),
    ("train_images", "train_labels", "test_images", "test_labels"),
)
CLASS_NAMES = "class_names"

_Array = np.ndarray[Any, np.dtype[Any]]


def load(path: Path) -> Dataset:
    """Loads images and labels.

    Images are uint8, ``[N, S, S]``, ``[N, S, S, C]`` or ``[N, C, S, S]``: the two equal axes are
    height and width. Labels are integers, ``[N]`` or ``[N, 1]``. An array ``class_names`` of
    strings is optional; without it the classes are called ``0``, ``1``, ... Pickled objects are
    never read.

    Args:
        path: The file.

    Returns:
        The data set, named after the file.

    Raises:
        OSError: The file cannot be read.
        UserError: The file is damaged, or its arrays cannot be used.
    """
    return from_arrays(str(path), path.stem, _read(path))


def from_arrays(what: str, name: str, arrays: Mapping[str, _Array]) -> Dataset:
    """Makes a data set of arrays with the names and shapes that a file has.

    Args:
        what: Where they come from, for messages.
        name: What the data set is called.
        arrays: As for :func:`load`; those of other names do not count.

    Returns:
        The data set.

    Raises:
        UserError: The arrays cannot be used.
    """
    keys = next((keys for keys in KEYS if all(key in arrays for key in keys)), None)
    if keys is None:
        raise UserError(
            f"{what} should hold the arrays {' or '.join(', '.join(keys) for keys in KEYS)}, "
            f"but holds {', '.join(sorted(arrays)) or 'nothing'}; save them under those names"
        )
    train_images, train_labels, test_images, test_labels = (
        (_images if key == image_key else _labels)(f"{what}: {key}", arrays[key])
        for key, image_key in zip(keys, (keys[0], "", keys[2], ""), strict=True)
    )
    names = _class_names(what, arrays, train_labels)
    return Dataset.from_arrays(name, train_images, train_labels, test_images, test_labels, names)


def _read(path: Path) -> dict[str, _Array]:
    wanted = {key for keys in KEYS for key in keys} | {CLASS_NAMES}
    with path.open("rb") as file:
        try:
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.lib.npyio.NpzFile):
                return {key: _array(archive, key) for key in archive.files if key in wanted}
        except (
            ValueError,
            EOFError,
            KeyError,  # what is called like an array, but is none
            MemoryError,
            OverflowError,
            RuntimeError,  # also what zipfile does not implement
            SyntaxError,  # of the header, which is a Python literal
            zipfile.BadZipFile,
            zlib.error,
        ) as error:
            raise UserError(
                f"{path} is damaged, not an .npz file, or holds Python objects instead of numbers "
                f"({error}); save plain arrays with numpy.savez"
            ) from error
    raise UserError(f"{path} holds a single array; save several with numpy.savez")


def _array(archive: np.lib.npyio.NpzFile, key: str) -> _Array:
    """An array of the archive, whose header claims no more than there is.

    Raises:
        ValueError: It claims another size, or there is no array.
    """
    assert archive.zip is not None  # it is open
    member = f"{key}.npy"
    with archive.zip.open(member) as file:
        major, _ = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if major == 1 else _read_later_header
        shape, _, dtype = read(file)
        claimed = math.prod(shape) * dtype.itemsize
        size = archive.zip.getinfo(member).file_size - file.tell()
    if claimed != size and not dtype.hasobject:  # numpy refuses those in words of its own
        raise ValueError(f"the header of {key} claims {claimed} bytes, but there are {size}")
    array: _Array = archive[key]
    return array


def _read_later_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    return np.lib.format.read_array_header_2_0(file)


def _images(what: str, array: _Array) -> Tensor:
    shape = list(array.shape)
    if array.dtype != np.uint8:
        raise UserError(
            f"{what} should be uint8, 0 to 255, but is {array.dtype}; convert it "
            "(numbers from 0 to 1: multiply by 255 and round)"
        )
    if array.ndim == 3:
        return torch.from_numpy(np.ascontiguousarray(array[:, None]))
    if array.ndim != 4:
        raise UserError(
            f"{what} should have shape [N, S, S], [N, S, S, C] or [N, C, S, S], but has {shape}"
        )
    channels_first, channels_last = shape[2] == shape[3], shape[1] == shape[2]
    if channels_first and channels_last:
        raise UserError(
            f"{what} has shape {shape}, where channels cannot be told from height and width; "
            "save it as [N, S, S] if it has one channel, or resize the images"
        )
    if not channels_first and not channels_last:
        raise UserError(
            f"{what} should hold square images, [N, S, S, C] or [N, C, S, S], but has shape "
            f"{shape}; crop or resize them"
        )
    if channels_last:
        array = array.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(array))


def _labels(what: str, array: _Array) -> Tensor:
    if not np.issubdtype(array.dtype, np.integer):
        raise UserError(
            f"{what} should hold whole numbers, one class index per image, but is "
            f"{array.dtype}; convert it to integers"
        )
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise UserError(
            f"{what} should have shape [N], one class index per image, but have "
            f"{list(array.shape)}; one-hot labels are converted by .argmax(axis=1)"
        )
    return torch.from_numpy(array.astype(np.int64))


def _class_names(what: str, arrays: Mapping[str, _Array], labels: Tensor) -> list[str]:
    if CLASS_NAMES in arrays:
        names = arrays[CLASS_NAMES]
        if names.ndim != 1 or names.dtype.kind != "U":
            raise UserError(
                f"{what}: class_names should be an array of strings, [K], but has dtype "
                f"{names.dtype} and shape {list(names.shape)}"
            )
        return [str(name) for name in names]
    # Every class has an image, so that there are as many as different labels, whatever these are.
    return [str(label) for label in range(len(labels.unique()))]
