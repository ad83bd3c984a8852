"""The shipped data set: a class-balanced part of Fashion-MNIST.

Each split is one greyscale PNG sheet with 200 images per row, sorted by class, so the position of
an image gives its label. ``fashion_mnist_mini/LICENSE`` has the terms of the original.
"""

import hashlib
import io
from functools import cache
from importlib import resources

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trajmatch.data.address import Address, Source
from trajmatch.data.dataset import Dataset
from trajmatch.data.known_sets import KNOWN_SETS
from trajmatch.data.options import Options
from trajmatch.errors import UserError

NAME = "fashion-mnist-mini"

_CLASSES = KNOWN_SETS["fashion-mnist"].classes
_SIDE = 28  # pixels
_SHA256 = {
    "train.png": "b71ccf353aa6f6792d939b621c86dbe86c3cccb992f991408cda83648cdd066b",
    "test.png": "a94cb9210314dcc39f9bde955b64a54744612f50789a3232de06c805f7932fde",
}


def load(address: Address, options: Options) -> Dataset:
    """Load the first 1,000 training and 200 test images of each class: ``[N, 1, 28, 28]``."""
    return _whole().of_classes(options.classes)


@cache
def _whole() -> Dataset:
    return Dataset(NAME, *_read("train.png"), *_read("test.png"), _CLASSES)


def _read(name: str) -> tuple[Tensor, Tensor]:
    """Return images ``[N, 1, 28, 28]`` and labels ``[N]`` of one sheet."""
    file = resources.files("trajmatch.data").joinpath("fashion_mnist_mini", name)
    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != _SHA256[name]:
        raise UserError(f"{file} is damaged (its SHA-256 sum is wrong); reinstall trajmatch")

    with Image.open(io.BytesIO(content)) as sheet:
        pixels = np.asarray(sheet)
    # Cut the sheet into images: [rows, 28, columns, 28] -> [rows, columns, 28, 28].
    rows, columns = pixels.shape[0] // _SIDE, pixels.shape[1] // _SIDE
    images = pixels.reshape(rows, _SIDE, columns, _SIDE).transpose(0, 2, 1, 3)
    images = images.reshape(-1, 1, _SIDE, _SIDE)
    labels = np.arange(len(images)) // (len(images) // len(_CLASSES))
    return torch.from_numpy(images), torch.from_numpy(labels)


SOURCES = {NAME: Source("", load)}
