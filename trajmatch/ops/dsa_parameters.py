"""Rows of parameters for :func:`trajmatch.ops.dsa`, one row for each image.

A row has five numbers, float64 whatever the images are: a kind, and what that kind needs.

====  ========  ==========================================
kind  name      the other four
====  ========  ==========================================
0     color     brightness, saturation, contrast, -
1     crop      shift of rows, shift of columns, -, -
2     cutout    top, left, height, width
3     flip      whether, -, -, -
4     sample    ``m00, m01, m10, m11``
====  ========  ==========================================

What a kind does not need is 0. The functions here make the rows of a batch, ``[B, 5]``, from one
value per image, ``[B]``, of any dtype; rows of different kinds may be put together in any order.
``scale`` and ``rotate`` are both of the kind ``sample``.
"""

from __future__ import annotations

import torch
from torch import Tensor

KINDS = ("color", "crop", "cutout", "flip", "sample")
"""Names of the kinds, in the order of their numbers (``DsaKind`` in ``csrc/core/dsa.h``)."""

COLUMNS = 5
"""Numbers in a row."""


def color(brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    """Brightness, then saturation, then contrast.

    The three steps are ``x + brightness``; ``(x - m) * saturation + m`` with ``m`` the mean over
    channels of each pixel; ``(x - m) * contrast + m`` with ``m`` the mean of the whole image.

    Args:
        brightness: Added to every value. ``[B]``.
        saturation: Factor of the distance from grey; of no effect on one channel. ``[B]``.
        contrast: Factor of the distance from the mean. ``[B]``.

    Returns:
        ``[B, 5]``, float64.
    """
    return _rows("color", brightness, saturation, contrast)


def crop(shift_y: Tensor, shift_x: Tensor) -> Tensor:
    """Move the window over the image; what comes in from outside is 0.

    Pixel ``(y, x)`` of the result is pixel ``(y + shift_y, x + shift_x)`` of the image.

    Args:
        shift_y: Whole pixels. ``[B]``.
        shift_x: Whole pixels. ``[B]``.

    Returns:
        ``[B, 5]``, float64.
    """
    return _rows("crop", shift_y, shift_x)


def cutout(top: Tensor, left: Tensor, height: int, width: int) -> Tensor:
    """Set a rectangle to 0; the part of it that lies outside of the image is lost.

    Args:
        top: First row of the rectangle, possibly negative. ``[B]``.
        left: First column. ``[B]``.
        height: Its rows.
        width: Its columns.

    Returns:
        ``[B, 5]``, float64.
    """
    return _rows("cutout", top, left, height, width)


def flip(flipped: Tensor) -> Tensor:
    """Exchange left and right.

    Args:
        flipped: True for images to flip; the others stay as they are. ``[B]``, bool.

    Returns:
        ``[B, 5]``, float64.
    """
    return _rows("flip", flipped)


def scale(scale_x: Tensor, scale_y: Tensor) -> Tensor:
    """Shrink or enlarge about the centre, bilinear, with 0 outside.

    With coordinates from -1 to 1 between the centres of the first and last pixel, the value at
    ``(x, y)`` is that of the image at ``(scale_x * x, scale_y * y)``: factors above 1 shrink.

    Args:
        scale_x: Factor of the horizontal coordinate. ``[B]``.
        scale_y: Factor of the vertical one. ``[B]``.

    Returns:
        ``[B, 5]``, float64.
    """
    return _rows("sample", scale_x, 0, 0, scale_y)


def rotate(angle: Tensor) -> Tensor:
    """Turn about the centre, bilinear, with 0 outside.

    In the coordinates of :func:`scale`, the value at ``(x, y)`` is that of the image at
    ``(x cos a - y sin a, x sin a + y cos a)``; ``y`` points down, so positive angles turn the
    picture anticlockwise.

    Args:
        angle: In radians. ``[B]``.

    Returns:
        ``[B, 5]``, float64.
    """
    exact = angle.double()
    cosine, sine = exact.cos(), exact.sin()
    return _rows("sample", cosine, -sine, sine, cosine)


def _rows(kind: str, first: Tensor, *others: Tensor | float) -> Tensor:
    rows = torch.zeros(len(first), COLUMNS, dtype=torch.float64, device=first.device)
    for column, values in enumerate((KINDS.index(kind), first, *others)):
        rows[:, column] = values
    return rows
