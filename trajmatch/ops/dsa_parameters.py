"""Parameters of :func:`trajmatch.ops.dsa`: a float64 row of five numbers for each image.

The first number is the kind of augmentation, the others are its settings:

- 0 ``color``: brightness, saturation, contrast
- 1 ``crop``: shift of rows, shift of columns
- 2 ``cutout``: top, left, height, width
- 3 ``flip``: 1 to flip, 0 to keep
- 4 ``sample``: the entries ``m00, m01, m10, m11`` of the matrix for ``scale`` or ``rotate``

Unused numbers are 0. Each function takes vectors ``[B]`` of any dtype, with one value per image,
and returns rows ``[B, 5]``. Rows of different kinds can be combined in any order.
"""

import torch
from torch import Tensor

#: Names of the kinds, in the order of their numbers (``DsaKind`` in ``csrc/core/dsa.h``).
KINDS = ("color", "crop", "cutout", "flip", "sample")

#: Numbers in a row.
COLUMNS = 5


def color(brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    """Return parameters that change brightness, then saturation, then contrast.

    Brightness is added. Saturation and contrast are factors: each replaces ``x`` by
    ``(x - m) * factor + m``. For saturation, ``m`` is each pixel's mean over the channels; for
    contrast, it is the mean of the image. Saturation has no effect on images with one channel.
    """
    return _rows("color", brightness, saturation, contrast)


def crop(shift_y: Tensor, shift_x: Tensor) -> Tensor:
    """Return parameters that shift images by whole pixels, filling with 0.

    Pixel ``(y, x)`` of the result is pixel ``(y + shift_y, x + shift_x)`` of the image.
    """
    return _rows("crop", shift_y, shift_x)


def cutout(top: Tensor, left: Tensor, height: int, width: int) -> Tensor:
    """Return parameters that set a ``height`` x ``width`` rectangle of the image to 0.

    ``top`` and ``left`` are the first row and column of the rectangle, and may be negative.
    """
    return _rows("cutout", top, left, height, width)


def flip(flipped: Tensor) -> Tensor:
    """Return parameters that exchange left and right where ``flipped`` is True."""
    return _rows("flip", flipped)


def scale(scale_x: Tensor, scale_y: Tensor) -> Tensor:
    """Return parameters that scale images about their centre, bilinearly, with 0 outside.

    Coordinates run from -1 at the centre of the first pixel to 1 at the centre of the last. The
    result at ``(x, y)`` is the image at ``(scale_x * x, scale_y * y)``, so factors above 1 shrink.
    """
    return _rows("sample", scale_x, 0, 0, scale_y)


def rotate(angle: Tensor) -> Tensor:
    """Return parameters that rotate images about their centre by ``angle`` (radians), bilinearly.

    In the coordinates of :func:`scale`, the result at ``(x, y)`` is the image at
    ``(x cos a - y sin a, x sin a + y cos a)`` for the angle ``a``, or 0 outside. Positive angles
    turn the image anticlockwise.
    """
    # Anticlockwise, because y points down.
    exact = angle.double()
    cosine, sine = exact.cos(), exact.sin()
    return _rows("sample", cosine, -sine, sine, cosine)


def _rows(kind: str, first: Tensor, *others: Tensor | float) -> Tensor:
    # [B, 5]: the kind, then the numbers; the columns that the kind does not use stay 0.
    rows = torch.zeros(len(first), COLUMNS, dtype=torch.float64, device=first.device)
    for column, values in enumerate((KINDS.index(kind), first, *others)):
        rows[:, column] = values
    return rows
