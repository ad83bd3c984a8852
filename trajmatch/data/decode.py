"""Image files as arrays: decoded with Pillow in a few threads, checked, resized where asked for."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from trajmatch.errors import UserError
from trajmatch.memory import available_memory

if TYPE_CHECKING:
    from PIL.Image import Image

_In = TypeVar("_In")
_Out = TypeVar("_Out")

_GREY = ("1", "L", "LA")
# Sixteen bits or floating point in one channel: 8 bits of it would lose what the user has.
_DEEP = ("I", "F")
# All that Pillow raises for files that are damaged or of another kind; a decompression bomb is one
# more, but can only be named where Pillow is imported.
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error)
# Decoding releases Python's lock; beyond a few threads the copies between them take over.
_THREADS = 8
# Files that the threads know of at a time; each takes a little memory, and a set can have millions.
_AT_ONCE = 4096


class Labelled(NamedTuple):
    """A file and the class of the image in it."""

    path: Path
    label: int


def inspect(files: Sequence[Labelled]) -> tuple[int, bool]:
    """Finds the one size of all images, from the files' heads.

    Args:
        files: The files.

    Returns:
        Side of the images in pixels, and whether any of them has colour.

    Raises:
        UserError: An image is not square, of another size, or cannot be read.
    """
    size, colour = 0, False
    for file, (width, height, coloured) in zip(files, _map(_head, files), strict=True):
        size = size or width
        colour = colour or coloured
        if width != height:
            raise UserError(
                f"{file.path} should be square, but is {width} pixels wide and {height} high; "
                "crop or resize the images, or add ?size=N (pixels) to the data's address"
            )
        if width != size:
            raise UserError(
                f"{file.path} is {width} x {width} pixels, but {files[0].path} is {size} x {size}; "
                "all images should have one size: resize them, or add ?size=N (pixels) to the "
                "data's address"
            )
    return size, colour


def any_colour(files: Sequence[Labelled]) -> bool:
    """Whether any image has colour, from the files' heads.

    Args:
        files: The files.

    Raises:
        UserError: An image cannot be read.
    """
    return any([colour for _, _, colour in _map(_head, files)])


def decode(
    files: Sequence[Labelled], size: int, *, colour: bool, upright: bool = False
) -> tuple[Tensor, Tensor]:
    """Decodes image files; those of another size are resized.

    Args:
        files: The files.
        size: Side of the result in pixels; see :func:`to_array`.
        colour: Whether the result is RGB, else grey.
        upright: Whether images are turned as their EXIF data says (photographs).

    Returns:
        Images ``[N, C, size, size]``, uint8, and labels ``[N]``, int64.

    Raises:
        UserError: An image cannot be used, or they do not fit into the memory.
    """
    images = empty_images(len(files), size, colour=colour)

    def fill(entry: tuple[int, Labelled]) -> None:
        index, (path, _) = entry
        with opened(path) as image:
            images[index] = to_array(str(path), image, size, colour=colour, upright=upright)

    for _ in _map(fill, list(enumerate(files))):
        pass
    return torch.from_numpy(images), torch.tensor([label for _, label in files])


def empty_images(count: int, size: int, *, colour: bool) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Memory for images.

    Args:
        count: How many.
        size: Their side in pixels.
        colour: Whether they have three channels, else one.

    Returns:
        ``[count, C, size, size]``, uint8, not initialised.

    Raises:
        UserError: There is not so much memory.
    """
    shape = (count, 3 if colour else 1, size, size)
    needed, free = int(np.prod(shape, dtype=np.int64)), available_memory()
    if needed > free:
        raise UserError(
            f"{count} images of {size} x {size} pixels take {needed / 1e9:.1f} GB of memory, but "
            f"{free / 1e9:.1f} GB are free; choose a smaller ?size= or fewer ?classes="
        )
    return np.empty(shape, np.uint8)


def to_array(
    what: str, image: Image, size: int, *, colour: bool, upright: bool = False
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """An image as an array of one size.

    The shorter side is resized to ``size`` (bilinear, with the area of a pixel that shrinks taken
    into account) and the middle is cut out, as torchvision's ``Resize`` and ``CenterCrop`` do.

    Args:
        what: What the image is, for messages.
        image: The image.
        size: Side of the result in pixels.
        colour: Whether the result is RGB, else grey.
        upright: Whether it is turned as its EXIF data says.

    Returns:
        ``[C, size, size]``, uint8.

    Raises:
        UserError: It has more than 8 bits a channel, or is transparent in places.
    """
    from PIL import Image, ImageOps

    _check_depth(what, image)
    if upright:
        image = ImageOps.exif_transpose(image)
    image = _opaque(what, image).convert("RGB" if colour else "L")
    width, height = image.size
    if (width, height) != (size, size):
        shorter = min(width, height)
        width, height = size * width // shorter, size * height // shorter
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = round((width - size) / 2), round((height - size) / 2)
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image).reshape(size, size, -1).transpose(2, 0, 1)


def has_colour(image: Image) -> bool:
    """Whether an image has more than one channel, by its mode (a palette counts as colour)."""
    return image.mode not in _GREY


@contextmanager
def opened(path: Path) -> Iterator[Image]:
    """Opens an image file; only its head is read until more is asked for.

    Args:
        path: The file.

    Yields:
        The image.

    Raises:
        UserError: It is no image, or is damaged; inside the block, too.
    """
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


def _head(file: Labelled) -> tuple[int, int, bool]:
    with opened(file.path) as image:
        _check_depth(str(file.path), image)
        return *image.size, has_colour(image)


def _check_depth(what: str, image: Image) -> None:
    if image.mode.startswith(_DEEP):
        raise UserError(
            f"{what} should have 8 bits a channel, but its mode is {image.mode}; convert it"
        )


def _opaque(what: str, image: Image) -> Image:
    """The image without its alpha channel, which may say nothing."""
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    if min(image.getchannel("A").tobytes()) < 255:
        raise UserError(f"{what} is transparent in places; put it on a background first")
    return image.convert("RGB")


def _map(function: Callable[[_In], _Out], items: Sequence[_In]) -> Iterator[_Out]:
    """Results in order; the first failure in that order ends it, and drops what has not begun."""
    pool = ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1))
    try:
        for start in range(0, len(items), _AT_ONCE):
            yield from pool.map(function, items[start : start + _AT_ONCE])
    finally:
        pool.shutdown(cancel_futures=True)
