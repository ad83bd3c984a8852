"""PNG pictures of image sets: one row per class, or one row for up to ten classes of one image.

One channel is shown as grey, two as red and green, and more as RGB from the first three. A PNG of a
single image keeps up to four channels (grey, grey and alpha, RGB, RGBA).
"""

import io
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from trajmatch.errors import UserError

Clip = Literal["sigma", "unit"]

#: ``clip="sigma"`` shows the mean plus or minus this many standard deviations, as MTT does.
_SIGMAS = 2.5
#: Minimum width of enlarged images in pixels, unless a scale is given.
_COMFORTABLE_SIZE = 96
_GAP = 4
_FONT_SIZE = 16
_LONGEST_NAME = 60
#: Maximum number of classes that are drawn in one row if each has one image.
_SIDE_BY_SIDE = 10
#: Width in pixels of the longest title, "iteration 10000000".
_TITLE_WIDTH = 160
#: Maximum number of pixels; viewers show no more, and as RGB they take 768 MB.
_MOST_PIXELS = 2**28


def png(image: Tensor) -> bytes:
    """Encode an image ``[C, H, W]``, uint8, as PNG; UserError if it has more than 4 channels."""
    return encode(_to_pillow(image))


class Look(NamedTuple):
    """Display options for the images of a set.

    ``clip="unit"`` shows pixel values from 0 to 1. ``clip="sigma"`` shows values up to 2.5 standard
    deviations from the mean of the set, because distilled images go far beyond 0 and 1.
    """

    clip: Clip = "sigma"
    scale: int | None = None  # nearest-neighbour enlargement; default: at least 96 pixels wide
    per_class: int | None = None  # default: all images


DEFAULT_LOOK = Look()


def grid(
    images: Tensor, labels: Tensor, class_names: Sequence[str], look: Look = DEFAULT_LOOK
) -> bytes:
    """Draw the images of a set as a PNG file, with the names of their classes.

    ``images`` are pixel values ``[n, C, H, W]``, floating point and not clipped; those of real
    images are in 0 to 1. ``labels`` are class indices ``[n]``, int64.
    """
    return encode(by_class(to_pixels(images, look.clip), labels, class_names, look))


def by_class(
    pixels: Tensor, labels: Tensor, class_names: Sequence[str], look: Look, title: str = ""
) -> Image.Image:
    """Draw images from :func:`to_pixels` below a title, one row per class.

    Up to ten classes of one image each share a row.
    """
    rows = [[*pixels[labels == index][: look.per_class]] for index in range(len(class_names))]
    if len(rows) <= _SIDE_BY_SIDE and {*map(len, rows)} == {1}:
        row = [image for (image,) in rows]
        return table([row], [""], heads=class_names, title=title, scale=look.scale)
    return table(rows, class_names, title=title, scale=look.scale)


def table(
    rows: Sequence[Sequence[Tensor]],
    names: Sequence[str],
    *,
    heads: Sequence[str] = (),
    title: str = "",
    scale: int | None = None,
) -> Image.Image:
    """Draw images from :func:`to_pixels` in rows, each with a name in front.

    ``heads`` are the column heads, and ``title`` is a text above them. Raises UserError if the
    picture would have more than 2^28 pixels.
    """
    channels, height, width = next(row for row in rows if row)[0].shape
    scale = scale or math.ceil(_COMFORTABLE_SIZE / width)
    tile = (width * scale, height * scale)
    names, heads = [*map(_one_line, names)], [*map(_one_line, heads)]
    font = ImageFont.load_default(_FONT_SIZE)
    # From left to right: names in the margin, then columns as wide as the widest image or head.
    margin = max(int(font.getlength(name)) for name in names) + 3 * _GAP
    column_width = max(tile[0], *(int(font.getlength(head)) for head in ("", *heads))) + _GAP
    # From top to bottom: the title, the column heads, the rows.
    line = _FONT_SIZE + _GAP
    heads_top = _GAP + (line if title else 0)
    top = heads_top + (line if heads else 0)
    size = (
        max(margin + max(map(len, rows)) * column_width, _TITLE_WIDTH if title else 0),
        top + len(rows) * (tile[1] + _GAP),
    )
    if math.prod(size) > _MOST_PIXELS:
        raise UserError(
            f"the picture would have {size[0]} x {size[1]} pixels; use a smaller --scale (now "
            f"{scale}) or --per-class"
        )
    canvas = Image.new("L" if channels == 1 else "RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((_GAP, _GAP), title, "black", font)
    for column, head in enumerate(heads):
        draw.text((margin + column * column_width, heads_top), head, "black", font)
    for name, members in zip(names, rows, strict=True):
        draw.text((_GAP, top + tile[1] / 2), name, "black", font, anchor="lm")
        for column, image in enumerate(members):
            enlarged = _to_pillow(image).resize(tile, Image.Resampling.NEAREST)
            canvas.paste(enlarged, (margin + column * column_width, top))
        top += tile[1] + _GAP
    return canvas


def to_pixels(images: Tensor, clip: Clip) -> Tensor:
    """Convert pixel values ``[n, C, H, W]`` to grey or RGB uint8, clipped as in :class:`Look`.

    Returns ``[n, 1, H, W]`` for one channel, else ``[n, 3, H, W]``.
    """
    images = images[:, :3]
    low, high = 0.0, 1.0
    if clip == "sigma":
        middle, band = float(images.mean()), _SIGMAS * float(images.std(correction=0))
        # Shrink the band to the values that occur, so that they use the whole range 0 to 255.
        low = max(middle - band, float(images.min()))
        high = min(middle + band, float(images.max()))
    if high <= low:
        pixels = torch.full_like(images, 128, dtype=torch.uint8)  # all values are equal
    else:
        pixels = ((images.clamp(low, high) - low) / (high - low) * 255).round().to(torch.uint8)
    # Two channels are red and green, so add an empty blue channel.
    if images.shape[1] == 2:
        return torch.cat([pixels, torch.zeros_like(pixels[:, :1])], dim=1)
    return pixels


def encode(image: Image.Image) -> bytes:
    """Encode a picture as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _to_pillow(image: Tensor) -> Image.Image:
    """Convert an image ``[C, H, W]``, uint8, to Pillow; UserError for more than 4 channels."""
    if image.shape[0] > 4:
        raise UserError(
            f"a PNG file has at most 4 channels, but these images have {image.shape[0]}; "
            "`trajmatch export --to npz` or `--to torch` keeps them all"
        )
    return Image.fromarray(image.permute(1, 2, 0).squeeze(2).contiguous().numpy())


def _one_line(name: str) -> str:
    """Remove line breaks from a name and shorten it."""
    line = " ".join(name.split())
    return line if len(line) <= _LONGEST_NAME else line[: _LONGEST_NAME - 1] + "\u2026"
