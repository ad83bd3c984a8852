"""Image files as arrays: decoded with Pillow in a few threads, checked, resized where asked for."""

from __future__ import annotations

import math
import os
import struct
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from trajmatch.data.options import Options
from trajmatch.errors import UserError
from trajmatch.memory import check_memory

if TYPE_CHECKING:
    from PIL.Image import Image

_In = TypeVar("_In")
_Out = TypeVar("_Out")

_GREY = ("1", "L", "LA")
# Sixteen bits or more, or floating point, in one channel.
_DEEP = ("I", "F")
# Losses of an image by default, as in torchvision.
_TURNED = (
    "are not upright, by their EXIF data, and are left so, as torchvision does; ?exif=turn turns "
    "them"
)
_TRANSPARENT = (
    "are transparent in places, where the colour below the transparency shows, as with "
    "torchvision; ?alpha=white puts them on white"
)
_DEEPER = (
    "have values above 255, which become 255, as with torchvision; ?bits=scale takes the upper 8 "
    "of 16 bits"
)
_ORIENTATION = 0x0112  # tag of EXIF
# Pillow refuses to decode more, twice its Image.MAX_IMAGE_PIXELS.
_MOST_PIXELS = 178_956_970
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


def inspect(files: Sequence[Labelled], options: Options) -> tuple[int, bool]:
    """Find the side of all images and whether any has colour, from the files' heads.

    Args:
        files: The files.
        options: ``size`` and ``large`` count.

    Returns:
        Side of the images in pixels, ``size`` if that is given; and True if an image has colour.

    Raises:
        UserError: An image cannot be read; or, without ``size``, is not square or of another size.
    """
    size, colour = options.size or 0, False
    with limits(options):
        heads = zip(files, _map(_head, files), strict=True)
        for file, (width, height, coloured) in heads:
            colour = colour or coloured
            if options.size is not None:
                continue
            size = size or width
            if width != height:
                raise UserError(
                    f"{file.path} should be square, but is {width} pixels wide and {height} high; "
                    "crop or resize the images, or add ?size=N (pixels) to the data's address"
                )
            if width != size:
                raise UserError(
                    f"{file.path} is {width} x {width} pixels, but {files[0].path} is {size} x "
                    f"{size}; all images should have one size: resize them, or add ?size=N "
                    "(pixels) to the data's address"
                )
    return size, colour


def decode(
    what: str, parts: Sequence[Sequence[Labelled]], size: int, options: Options, *, colour: bool
) -> list[tuple[Tensor, Tensor]]:
    """Decode the image files of some parts; those of another size are resized.

    Args:
        what: Whose files they are, for messages.
        parts: The files of each part.
        size: Side of the result in pixels; see :func:`to_array`.
        options: ``exif``, ``alpha``, ``bits`` and ``large`` count.
        colour: True for RGB, False for grey.

    Returns:
        Of each part, images ``[N, C, size, size]``, uint8, and labels ``[N]``, int64.

    Raises:
        UserError: An image cannot be used, or they do not fit into the memory.
    """
    lost: list[str] = []

    def decoded(files: Sequence[Labelled]) -> tuple[Tensor, Tensor]:
        images = empty_images(len(files), size, colour=colour)

        def fill(entry: tuple[int, Labelled]) -> None:
            index, (path, _) = entry
            with opened(path) as image:
                images[index] = to_array(str(path), image, size, options, lost, colour=colour)

        for _ in _map(fill, list(enumerate(files))):
            pass
        return torch.from_numpy(images), torch.tensor([label for _, label in files])

    with limits(options):
        pairs = [decoded(files) for files in parts]
    say_lost(what, lost, sum(map(len, parts)))
    return pairs


def say_lost(what: str, lost: Sequence[str], count: int) -> None:
    """Warn of what image files say and the images do not show; see :func:`to_array`.

    Args:
        what: Whose files they are.
        lost: An entry for each loss.
        count: Number of all images.
    """
    for kind, number in sorted(Counter(lost).items()):
        warnings.warn(f"{what}: {number} of {count} images {kind}", stacklevel=2)


def empty_images(count: int, size: int, *, colour: bool) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Allocate memory for images.

    Args:
        count: Number of images.
        size: Their side in pixels.
        colour: True for three channels, False for one.

    Returns:
        ``[count, C, size, size]``, uint8, not initialised.

    Raises:
        UserError: There is less memory.
    """
    shape = (count, 3 if colour else 1, size, size)
    what, advice = (
        f"{count} images of {size} x {size} pixels",
        "choose a smaller ?size= or fewer ?classes=",
    )
    check_memory(what, math.prod(shape), advice)
    try:
        return np.empty(shape, np.uint8)
    except MemoryError as error:  # a limit of the process, such as that of `ulimit -v`
        raise UserError(f"there is not enough memory for {what}; {advice}") from error


def to_array(
    what: str, image: Image, size: int, options: Options, lost: list[str], *, colour: bool
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Convert an image to an array of one size.

    The shorter side is resized to ``size`` (bilinear, with the area of a pixel that shrinks taken
    into account) and the middle is cut out, as torchvision's ``Resize`` and ``CenterCrop`` do.
    By default EXIF orientation, transparency and more than 8 bits are treated as torchvision's
    image loader treats them.

    Args:
        what: Name of the image, for messages.
        image: The image.
        size: Side of the result in pixels.
        options: ``exif``, ``alpha``, ``bits`` and ``large`` count.
        lost: Gets an entry for each thing that the file says and the result does not show.
        colour: True for RGB, False for grey.

    Returns:
        ``[C, size, size]``, uint8.

    Raises:
        UserError: It has floating-point numbers that are to be scaled, or is too long to be
            resized.
    """
    from PIL import Image, ImageOps

    if _orientation(image) > 1:
        if options.exif == "turn":
            image = ImageOps.exif_transpose(image)
        else:
            lost.append(_TURNED)
    if image.mode.startswith(_DEEP):
        image = _eight_bits(what, image, options, lost)
    if image.has_transparency_data:
        image = _opaque(image, options, lost)
    image = image.convert("RGB" if colour else "L")
    width, height = image.size
    if (width, height) != (size, size):
        shorter = min(width, height)
        resized = size * width // shorter, size * height // shorter
        if math.prod(resized) > _MOST_PIXELS and options.large == "refuse":
            raise UserError(
                f"{what} is {width} x {height} pixels, which is too long to be resized to {size}; "
                "crop it"
            )
        image = image.resize(resized, Image.Resampling.BILINEAR)
        left, top = round((resized[0] - size) / 2), round((resized[1] - size) / 2)
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image).reshape(size, size, -1).transpose(2, 0, 1)


def has_colour(image: Image) -> bool:
    """True if an image has more than one channel, by its mode (a palette counts as colour)."""
    return image.mode not in _GREY and not image.mode.startswith(_DEEP)


def is_image(path: Path) -> bool:
    """True for a file with the ending of an image, or whose head is that of one."""
    from PIL import Image, UnidentifiedImageError

    if path.suffix.lower() in Image.registered_extensions():
        return True
    try:
        with Image.open(path):
            return True
    except UnidentifiedImageError:
        return False
    except Exception:  # it is one, or cannot be read: whoever decodes it says so
        return True


@contextmanager
def opened(source: Path | BytesIO, name: str = "") -> Iterator[Image]:
    """Open an image file; only its head is read until more is asked for.

    Args:
        source: The file.
        name: Its name for messages; empty takes the path.

    Yields:
        The image.

    Raises:
        UserError: It is no image, or is damaged; inside the block, too.
    """
    from PIL import Image

    try:
        with Image.open(source) as image:
            yield image
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(
            f"{name or source} is too large ({error}); add ?large=allow to the data's address if "
            "you trust it"
        ) from error
    except _UNREADABLE as error:
        if isinstance(error, OSError) and error.strerror:
            raise UserError(f"cannot read {name or source}: {error.strerror}") from error
        raise UserError(
            f"{name or source} cannot be read as an image ({error}); mend it or move it away"
        ) from error


@contextmanager
def limits(options: Options) -> Iterator[None]:
    """Let Pillow read large images inside the block: silently up to its limit, or all of them."""
    from PIL import Image

    most = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", "Corrupt EXIF data")
        Image.MAX_IMAGE_PIXELS = most if options.large == "refuse" else None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = most


def _head(file: Labelled) -> tuple[int, int, bool]:
    with opened(file.path) as image:
        return *image.size, has_colour(image)


def _orientation(image: Image) -> int:
    """Orientation of EXIF, 1 to 8; 1 is upright, and 0 for none or one that cannot be read."""
    # Pillow would decode the whole of a PNG file in search of more.
    if "exif" in image.info or image.format == "TIFF":
        with suppress(*_UNREADABLE):
            found = image.getexif().get(_ORIENTATION, 0)
            return found if found in range(1, 9) else 0
    return 0


def _eight_bits(what: str, image: Image, options: Options, lost: list[str]) -> Image:
    """Convert an image of more than 8 bits a channel to grey."""
    from PIL import Image

    values = np.asarray(image)
    if options.bits == "scale":
        if values.dtype.kind == "f":
            raise UserError(
                f"{what} has floating-point numbers, whose scale is not known; convert it to 8 bits"
            )
        values = values >> 8
    elif values.max(initial=0) > 255:
        lost.append(_DEEPER)
    return Image.fromarray(np.nan_to_num(values).clip(0, 255).astype(np.uint8))


def _opaque(image: Image, options: Options, lost: list[str]) -> Image:
    """Remove the alpha channel of an image, which may say nothing."""
    from PIL import Image

    image = image.convert("RGBA")
    if min(image.getchannel("A").tobytes()) < 255:
        if options.alpha == "drop":
            lost.append(_TRANSPARENT)
        else:
            background = Image.new("RGBA", image.size, options.alpha)
            image = Image.alpha_composite(background, image)
    return image.convert("RGB")


def _map(function: Callable[[_In], _Out], items: Sequence[_In]) -> Iterator[_Out]:
    """Results in order; the first failure in that order ends it, and drops what has not begun."""
    pool = ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1))
    try:
        for start in range(0, len(items), _AT_ONCE):
            yield from pool.map(function, items[start : start + _AT_ONCE])
    finally:
        pool.shutdown(cancel_futures=True)
