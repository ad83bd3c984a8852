"""Checks of images, labels and names before anything is trained on them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor

from trajmatch.data.options import composed
from trajmatch.errors import UserError


def check_images(what: str, images: Tensor) -> None:
    """Refuse anything but at least one square 8-bit image.

    Args:
        what: Name of the images, for the message, e.g. ``"data set pets: training images"``.
        images: Wanted: ``[N, C, S, S]``, uint8, on the CPU.

    Raises:
        UserError: They are something else.
    """
    shape = list(images.shape)
    if images.dtype != torch.uint8:
        raise UserError(
            f"{what} should be uint8, 0 to 255, but are {_dtype(images)}; "
            "convert them (numbers from 0 to 1: multiply by 255 and round)"
        )
    if images.ndim != 4 or images.numel() == 0 or shape[2] != shape[3]:
        raise UserError(
            f"{what} should be square, [N, C, S, S], and at least one, but have shape {shape}; "
            "crop or resize them"
        )


def check_labels(what: str, labels: Tensor, count: int, class_names: Sequence[str]) -> None:
    """Refuse labels that are not one class index per image.

    Args:
        what: Name of the labels, for the message, e.g. ``"data set pets: training labels"``.
        labels: Wanted: ``[count]``, int64, from 0 to the number of classes less one.
        count: Number of images.
        class_names: One name per class.

    Raises:
        UserError: They are something else.
    """
    classes = len(class_names)
    if labels.dtype != torch.int64 or list(labels.shape) != [count]:
        raise UserError(
            f"{what} should be whole numbers (int64), one class index per image, [{count}], but "
            f"are {_dtype(labels)} of shape {list(labels.shape)}"
        )
    outside = torch.nonzero((labels < 0) | (labels >= classes)).flatten()
    if len(outside):
        first = int(outside[0])
        raise UserError(
            f"{what} should run from 0 to {classes - 1} ({classes} classes), but image {first} has "
            f"label {int(labels[first])}; renumber the classes from 0 without gaps"
        )


def check_class_names(what: str, class_names: Sequence[str]) -> None:
    """Refuse fewer than two classes, and names that are empty, given twice or not UTF-8.

    Names are compared in the Unicode form NFC.

    Args:
        what: Name of the data set, for the message.
        class_names: One name per class.

    Raises:
        UserError: They cannot be used.
    """
    if len(class_names) < 2:
        raise UserError(
            f"{what}: at least 2 classes are needed, but there are {len(class_names)} "
            f"({', '.join(class_names) or 'no names'})"
        )
    seen: set[str] = set()
    for index, name in enumerate(class_names):
        check_text(f"{what}: the class name", name)
        if not name or composed(name) in seen:
            raise UserError(
                f"{what}: every class needs a name of its own, but class {index} is called {name!r}"
            )
        seen.add(composed(name))


def check_text(what: str, text: str) -> None:
    """Refuse a text that UTF-8 cannot write: files are described in UTF-8.

    Args:
        what: Name of the text, for the message.
        text: The text; Python keeps the bytes of file names in other encodings as surrogates.

    Raises:
        UserError: The text has a surrogate.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        given: str | bytes = text
        with contextlib.suppress(UnicodeEncodeError):  # of a surrogate that stands for no byte
            given = text.encode("utf-8", "surrogateescape")
        raise UserError(f"{what} {given!r} is not UTF-8; rename it") from None


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
