"""Pictures of image sets: PNG files and grids with one row per class.

A picture shows one channel as grey, two as red and green, and the first three of more as red, green
and blue. A PNG of a single image keeps up to four channels (grey, grey and alpha, RGB, RGBA).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Literal

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from trajmatch.errors import UserError

Clip = Literal["sigma", "unit"]

#: Width of the band that ``clip="sigma"`` shows, in standard deviations (MTT's own pictures).
_SIGMAS = 2.5
#: Enlarged images are at least so many pixels wide where the caller does not say.
_COMFORTABLE_SIZE = 96
_GAP = 4
_FONT_SIZE = 16
_LONGEST_NAME = 60
_PAPER, _INK = 255, 0
#: No viewer shows more; as RGB they take 768 MB.
_MOST_PIXELS = 2**28


def png(image: Tensor) -> bytes:
    """One image as a PNG file.

    Args:
        image: ``[C, H, W]``, uint8, with 1 to 4 channels; all are kept.

    Returns:
        The content of the file.

    Raises:
        UserError: It has more channels.
    """
    return encode(to_pillow(image))


def grid(
    images: Tensor,
    labels: Tensor,
    class_names: Sequence[str],
    *,
    clip: Clip = "sigma",
    scale: int | None = None,
    per_class: int | None = None,
) -> bytes:
    """Images of a set as a PNG: one row per class, its name in front.

    Args:
        images: Pixel values, real images from 0 to 1, not clipped. ``[n, C, H, W]``, floating
            point, of any number of channels.
        labels: Class of each image. ``[n]``, int64.
        class_names: Name of each class.
        clip: ``"unit"`` shows the pixel values from 0 to 1 as they are. ``"sigma"`` shows the band
            of 2.5 standard deviations around the mean of the whole set: distilled images go far
            beyond 0 and 1.
        scale: Enlargement, by nearest neighbour. Default: so that images are 96 pixels wide.
        per_class: Images to show of each class. Default: all.

    Returns:
        The content of the file.
    """
    pixels = to_pixels(images, clip)
    rows = [[*pixels[labels == index][:per_class]] for index in range(len(class_names))]
    return encode(table(rows, class_names, scale=scale))


def table(
    rows: Sequence[Sequence[Tensor]],
    names: Sequence[str],
    *,
    heads: Sequence[str] = (),
    title: str = "",
    scale: int | None = None,
) -> Image.Image:
    """Images in rows, each with a name in front.

    Args:
        rows: Images of one size, as :func:`to_pixels` gives them. One row at least has one.
        names: Name of each row.
        heads: What stands above each column. Default: nothing, and no room for it.
        title: Text above everything. Default: none, and no room for it.
        scale: Enlargement, by nearest neighbour. Default: so that images are 96 pixels wide.

    Returns:
        The picture.

    Raises:
        UserError: It would have more than 2^28 pixels.
    """
    channels, height, width = next(row for row in rows if row)[0].shape
    scale = scale or max(1, -(-_COMFORTABLE_SIZE // width))
    names, heads = [*map(_one_line, names)], [*map(_one_line, heads)]
    font = ImageFont.load_default(_FONT_SIZE)
    margin = _GAP + max(int(font.getlength(name)) for name in names) + 2 * _GAP
    tile_size = (width * scale, height * scale)
    column_width = max([tile_size[0], *(int(font.getlength(head)) for head in heads)]) + _GAP
    row_height = tile_size[1] + _GAP
    line_height = _FONT_SIZE + _GAP
    top = _GAP + line_height * (bool(title) + bool(heads))
    width = max(margin + max(map(len, rows)) * column_width, 2 * _GAP + int(font.getlength(title)))
    if width * (top + len(rows) * row_height) > _MOST_PIXELS:
        raise UserError(
            f"the picture would have {width} x {top + len(rows) * row_height} pixels; take a "
            f"smaller --scale (now {scale}) or --per-class"
        )
    grey = channels == 1
    canvas = Image.new(
        "L" if grey else "RGB",
        (width, top + len(rows) * row_height),
        _PAPER if grey else (_PAPER,) * 3,
    )
    draw = ImageDraw.Draw(canvas)
    ink = _INK if grey else (_INK,) * 3
    draw.text((_GAP, _GAP), title, fill=ink, font=font)
    for column, head in enumerate(heads):
        place = (margin + column * column_width, top - line_height)
        draw.text(place, head, fill=ink, font=font)
    for name, members in zip(names, rows, strict=True):
        draw.text((_GAP, top + tile_size[1] / 2), name, fill=ink, font=font, anchor="lm")
        for column, image in enumerate(members):
            tile = to_pillow(image).resize(tile_size, Image.Resampling.NEAREST)
            canvas.paste(tile, (margin + column * column_width, top))
        top += row_height
    return canvas


def to_pixels(images: Tensor, clip: Clip) -> Tensor:
    """Clip pixel values and channels to what can be shown, from 0 to 255.

    Args:
        images: Pixel values, not clipped: distilled images go far beyond 0 and 1.
            ``[n, C, H, W]``, floating point.
        clip: See :func:`grid`.

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


def to_pillow(image: Tensor) -> Image.Image:
    """Convert one image for Pillow, in the mode L, LA, RGB or RGBA.

    Args:
        image: ``[C, H, W]``, uint8, with 1 to 4 channels.

    Raises:
        UserError: It has more channels.
    """
    if image.shape[0] > 4:
        raise UserError(
            f"a PNG file has at most 4 channels, but these images have {image.shape[0]}; "
            "`trajmatch export --to npz` or `--to torch` keeps them all"
        )
    if image.shape[0] == 1:
        return Image.fromarray(image[0].numpy())
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def encode(image: Image.Image) -> bytes:
    """A picture as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _one_line(name: str) -> str:
    """A name without line breaks, which a row has no room for, and not longer than a picture."""
    line = " ".join(name.split())
    return line if len(line) <= _LONGEST_NAME else line[: _LONGEST_NAME - 1] + "\u2026"
