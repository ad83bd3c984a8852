"""Pictures of image sets: PNG files and grids with one row per class.

A picture shows one channel as grey, two as red and green, and the first three of more as red, green
and blue. A PNG of a single image keeps up to four channels (grey, grey and alpha, RGB, RGBA).
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from trajmatch.errors import UserError

Clip = Literal["sigma", "unit"]

#: Width of the band that ``clip="sigma"`` shows, in standard deviations (MTT's own pictures).
_SIGMAS = 2.5
#: Enlarged images are at least this many pixels wide where the caller does not say.
_COMFORTABLE_SIZE = 96
_GAP = 4
_FONT_SIZE = 16
_LONGEST_NAME = 60
#: Room for "iteration 10000000".
_TITLE_WIDTH = 160
#: No viewer shows more; as RGB they take 768 MB.
_MOST_PIXELS = 2**28


def png(image: Tensor) -> bytes:
    """Encode an image as a PNG file.

    Args:
        image: ``[C, H, W]``, uint8, with 1 to 4 channels; all are kept.

    Raises:
        UserError: It has more channels.
    """
    return encode(_to_pillow(image))


@dataclass(frozen=True)
class Look:
    """How the images of a set are drawn.

    Attributes:
        clip: ``"unit"`` shows the pixel values from 0 to 1 as they are. ``"sigma"`` shows the band
            of 2.5 standard deviations around the mean of the whole set: distilled images go far
            beyond 0 and 1.
        scale: Enlargement, by nearest neighbour. Default: so that images are 96 pixels wide.
        per_class: Images to show of each class. Default: all.
    """

    clip: Clip = "sigma"
    scale: int | None = None
    per_class: int | None = None


DEFAULT_LOOK = Look()


def grid(
    images: Tensor, labels: Tensor, class_names: Sequence[str], look: Look = DEFAULT_LOOK
) -> bytes:
    """Draw the images of a set as a PNG file: one row per class, its name in front.

    Args:
        images: Pixel values, real images from 0 to 1, not clipped. ``[n, C, H, W]``, floating
            point, of any number of channels.
        labels: Class of each image. ``[n]``, int64.
        class_names: Name of each class.
        look: How they are drawn.
    """
    return encode(by_class(to_pixels(images, look.clip), labels, class_names, look))


def by_class(
    pixels: Tensor, labels: Tensor, class_names: Sequence[str], look: Look, title: str = ""
) -> Image.Image:
    """Draw a row per class of images that :func:`to_pixels` gave, with a title above."""
    rows = [[*pixels[labels == index][: look.per_class]] for index in range(len(class_names))]
    return table(rows, class_names, title=title, scale=look.scale)


def table(
    rows: Sequence[Sequence[Tensor]],
    names: Sequence[str],
    *,
    heads: Sequence[str] = (),
    title: str = "",
    scale: int | None = None,
) -> Image.Image:
    """Draw images in rows, each with a name in front.

    Args:
        rows: Images of one size, as :func:`to_pixels` gives them. At least one row has one.
        names: Name of each row.
        heads: Heads of the columns.
        title: Text above the rows, in place of ``heads``.
        scale: Enlargement, by nearest neighbour. Default: so that images are 96 pixels wide.

    Raises:
        UserError: The picture would have more than 2^28 pixels.
    """
    channels, height, width = next(row for row in rows if row)[0].shape
    scale = scale or math.ceil(_COMFORTABLE_SIZE / width)
    tile = (width * scale, height * scale)
    names = [*map(_one_line, names)]
    font = ImageFont.load_default(_FONT_SIZE)
    margin = max(int(font.getlength(name)) for name in names) + 3 * _GAP
    column_width = max(tile[0], *(int(font.getlength(head)) for head in ("", *heads))) + _GAP
    top = _GAP + (_FONT_SIZE + _GAP if heads or title else 0)
    size = (
        max(margin + max(map(len, rows)) * column_width, _TITLE_WIDTH if title else 0),
        top + len(rows) * (tile[1] + _GAP),
    )
    if math.prod(size) > _MOST_PIXELS:
        raise UserError(
            f"the picture would have {size[0]} x {size[1]} pixels; take a smaller --scale (now "
            f"{scale}) or --per-class"
        )
    canvas = Image.new("L" if channels == 1 else "RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((_GAP, _GAP), title, "black", font)
    for column, head in enumerate(heads):
        draw.text((margin + column * column_width, _GAP), head, "black", font)
    for name, members in zip(names, rows, strict=True):
        draw.text((_GAP, top + tile[1] / 2), name, "black", font, anchor="lm")
        for column, image in enumerate(members):
            enlarged = _to_pillow(image).resize(tile, Image.Resampling.NEAREST)
            canvas.paste(enlarged, (margin + column * column_width, top))
        top += tile[1] + _GAP
    return canvas


def to_pixels(images: Tensor, clip: Clip) -> Tensor:
    """Clip pixel values and channels to what can be shown, from 0 to 255.

    Args:
        images: Pixel values, not clipped: distilled images go far beyond 0 and 1.
            ``[n, C, H, W]``, floating point.
        clip: See :class:`Look`.

    Returns:
        ``[n, 1, H, W]`` for one channel, else ``[n, 3, H, W]``; uint8.
    """
    images = images[:, :3]
    low, high = 0.0, 1.0
    if clip == "sigma":
        middle, band = float(images.mean()), _SIGMAS * float(images.std(correction=0))
        # No wider than what there is, so that a set inside the band uses the whole range.
        low = max(middle - band, float(images.min()))
        high = min(middle + band, float(images.max()))
    if high <= low:
        pixels = torch.full_like(images, 128, dtype=torch.uint8)  # a set of one grey
    else:
        pixels = ((images.clamp(low, high) - low) / (high - low) * 255).round().to(torch.uint8)
    if images.shape[1] == 2:
        return torch.cat([pixels, torch.zeros_like(pixels[:, :1])], dim=1)
    return pixels


def encode(image: Image.Image) -> bytes:
    """Encode a picture as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _to_pillow(image: Tensor) -> Image.Image:
    """Convert an image ``[C, H, W]``, uint8, with 1 to 4 channels for Pillow."""
    if image.shape[0] > 4:
        raise UserError(
            f"a PNG file has at most 4 channels, but these images have {image.shape[0]}; "
            "`trajmatch export --to npz` or `--to torch` keeps them all"
        )
    return Image.fromarray(image.permute(1, 2, 0).squeeze(2).contiguous().numpy())


def _one_line(name: str) -> str:
    """Return a name without line breaks, cut where it is long."""
    line = " ".join(name.split())
    return line if len(line) <= _LONGEST_NAME else line[: _LONGEST_NAME - 1] + "\u2026"
