"""SVHN, the street view house numbers, from its official MATLAB files of 32 x 32 images."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trajmatch.data.dataset import Dataset
from trajmatch.data.reading import check_folder
from trajmatch.errors import UserError

_TRAIN, _TEST = "train_32x32.mat", "test_32x32.mat"
# What SciPy raises for files that are damaged or of another kind, beside an error of its own.
_DAMAGED = (
    OSError,
    ValueError,
    TypeError,
    NotImplementedError,
    EOFError,
    MemoryError,  # of a size that only the file claims
    OverflowError,
    zlib.error,
)
# torchvision puts the files into ROOT itself; others into a folder of that name.
_FOLDERS = ("svhn", "SVHN", ".")


def found_in(root: Path) -> bool:
    """Whether :func:`load` would find a file of the set.

    Args:
        root: Folder to look in.
    """
    return _folder(root) is not None


def load(root: Path) -> Dataset:
    """Loads the set; the extra training images are left out, as in the papers.

    Args:
        root: Folder that holds ``train_32x32.mat`` and ``test_32x32.mat``, or the parent of it.

    Returns:
        The data set, ``svhn``. In the files the digit 0 has label 10.

    Raises:
        OSError: A file cannot be read.
        UserError: A file is missing, damaged, or of another kind.
    """
    check_folder(root)
    folder = _folder(root)
    if folder is None:
        raise UserError(
            f"{root} holds neither {_TRAIN} nor svhn/{_TRAIN}; put the two official files of "
            f"cropped digits, {_TRAIN} and {_TEST}, there"
        )
    return Dataset.from_arrays(
        "svhn", *_read(folder / _TRAIN), *_read(folder / _TEST), class_names=tuple("0123456789")
    )


def _folder(root: Path) -> Path | None:
    folders = [root / name for name in _FOLDERS]
    # Any file will do here, so that an incomplete set is reported as one.
    return next((f for f in folders if (f / _TRAIN).is_file() or (f / _TEST).is_file()), None)


def _read(path: Path) -> tuple[Tensor, Tensor]:
    """Images ``[N, 3, 32, 32]``, uint8, and labels ``[N]`` of one file."""
    if not path.is_file():
        raise UserError(f"{path} is missing; put both official files there")
    content = _load_matlab(path)
    images, labels = content.get("X"), content.get("y")
    sound = (
        images is not None
        and labels is not None
        and images.dtype == np.uint8
        and images.shape[:3] == (32, 32, 3)
        and images.ndim == 4
        and labels.shape == (images.shape[3], 1)
        and np.issubdtype(labels.dtype, np.integer)
    )
    if images is None or labels is None or not sound:
        found = ", ".join(
            f"{name} {list(value.shape)} of {value.dtype}"
            for name, value in content.items()
            if isinstance(value, np.ndarray)
        )
        raise UserError(
            f"{path} should hold X [32, 32, 3, N] of uint8 and y [N, 1], but holds "
            f"{found or 'neither'}; download the official file of cropped digits again"
        )
    digits = labels[:, 0].astype(np.int64) % 10
    return torch.from_numpy(images.transpose(3, 2, 0, 1).copy()), torch.from_numpy(digits)


def _load_matlab(path: Path) -> dict[str, Any]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    content = io.BytesIO(path.read_bytes())  # what the system refuses is no fault of the content
    try:
        return loadmat(content, variable_names=("X", "y"))
    except (*_DAMAGED, MatReadError) as error:
        raise UserError(
            f"{path} is cut off or not a MATLAB file of version 5 ({error}); download it again"
        ) from error
