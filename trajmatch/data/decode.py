"""Decoding of image files with Pillow in a thread pool, with checks and resizing."""

import io
import math
import os
import struct
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.Image import DecompressionBombError
from torch import Tensor

from trajmatch.data.dataset import Dataset
from trajmatch.data.known_sets import KnownSet
from trajmatch.data.options import ImageOptions
from trajmatch.data.parts import split_parts
from trajmatch.errors import UserError, warn
from trajmatch.memory import check_memory

_GREY = ("1", "L", "LA")
# Pillow modes with one channel of 16 bits or more, or floating point.
_DEEP = ("I", "F")
# Warnings about information that is dropped by default, as in torchvision's image loader.
_TURNED = "have an EXIF orientation that is ignored; ?exif=turn applies it"
_TRANSPARENT = "have transparent pixels whose alpha is dropped; ?alpha=white puts them on white"
_DEEPER = (
    "have values above 255, which are clipped; ?bits=scale keeps the upper 8 of the 16 bits instead"
)
_ORIENTATION = 0x0112  # EXIF tag
# Pillow's limit for decoding: twice its Image.MAX_IMAGE_PIXELS.
_MOST_PIXELS = 178_956_970
# Exceptions of Pillow for damaged or unknown files.
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, DecompressionBombError)
# Decoding releases the GIL; with more threads, copying becomes the bottleneck.
_THREADS = 8
# Number of pictures queued at a time: a set can have millions, and each future takes memory.
_AT_ONCE = 4096

_Shape = tuple[int, int, int]  # (C, S, S)


class Picture(NamedTuple):
    """Labelled image that is not decoded yet.

    The source is a path, or a function that returns a path, encoded bytes or a Pillow image.
    """

    label: int
    source: Path | Callable[[], Any]
    name: str = ""

    def __str__(self) -> str:
        return self.name or str(self.source)


def load_pictures(
    what: str,
    name: str,
    parts: Sequence[Sequence[Picture]],
    class_names: Sequence[str],
    options: ImageOptions,
    fraction: float | None = None,
    known: KnownSet | None = None,
) -> Dataset:
    """Decode training pictures, and test pictures if given, into a data set.

    The set is grey if all pictures are grey, else RGB. Without ``size``, all must be square and of
    one size. Without test pictures, ``fraction`` of each class becomes the test set. A known set is
    always RGB, with its own size and published statistics. Raises UserError if a picture cannot be
    used or memory is short; ``what`` names the set in messages.
    """
    if len(parts) == 1:
        labels = torch.tensor([picture.label for picture in parts[0]])
        split = split_parts(what, labels, class_names, fraction)
        parts = [[parts[0][index] for index in rows] for rows in split]
    with _limits(options):
        size = options.size or (known.size if known else 0)
        # The shape must be known before decoding, to allocate the arrays and check the memory.
        shape = (3, size, size)
        if known is None:
            shape = _shape([picture for part in parts for picture in part], options)
        lost: list[str] = []
        train, test = (_decode(part, shape, options, lost) for part in parts)
    # ``lost`` has one message for each image and kind of information: warn once per kind.
    for kind, number in sorted(Counter(lost).items()):
        warn(f"{what}: {number} of {sum(map(len, parts))} images {kind}")
    statistics = (known.mean, known.std, True) if known else ()
    return Dataset(name, *train, *test, tuple(class_names), *statistics)


def is_image(path: Path) -> bool:
    """Return True if a file has the suffix or the header of an image."""
    if path.suffix.lower() in Image.registered_extensions():
        return True
    try:
        with Image.open(path):
            return True
    except UnidentifiedImageError:
        return False
    except Exception:  # a damaged image or an unreadable file: decoding reports it
        return True


def to_array(
    what: str, image: Image.Image, shape: _Shape, options: ImageOptions, lost: list[str]
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Convert a Pillow image to a uint8 array of ``shape`` ``(C, S, S)``, RGB or grey.

    Resizes the shorter side to ``S`` (bilinear with antialiasing) and crops the centre, as
    torchvision's ``Resize`` and ``CenterCrop`` do. By default, images with an EXIF rotation, an
    alpha channel or more than 8 bits are read as by torchvision's image loader. For each kind of
    information that is dropped, a message is appended to ``lost``. Raises UserError if the resized
    image would be too large, or if ``bits`` is ``"scale"`` and the pixels are floating point.
    """
    # Turning exchanges width and height, so it comes before resizing.
    if _orientation(image) > 1:
        if options.exif == "turn":
            image = ImageOps.exif_transpose(image)
        else:
            lost.append(_TURNED)
    # Treat deep pixels and alpha before convert(), which would silently lose values above 255 and
    # transparency.
    if image.mode.startswith(_DEEP):
        image = _eight_bits(what, image, options, lost)
    if image.has_transparency_data:
        image = _opaque(image, options, lost)
    channels, size, _ = shape
    image = image.convert("RGB" if channels == 3 else "L")
    width, height = image.size
    if (width, height) != (size, size):
        shorter = min(width, height)
        # A long, thin image can become huge although the file is small.
        resized = size * width // shorter, size * height // shorter
        if math.prod(resized) > _MOST_PIXELS and options.large == "refuse":
            raise UserError(
                f"{what} is {width} x {height} pixels, and its aspect ratio is too large to resize "
                f"it to {size}; crop it"
            )
        image = image.resize(resized, Image.Resampling.BILINEAR)
        left, top = round((resized[0] - size) / 2), round((resized[1] - size) / 2)
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image).reshape(size, size, -1).transpose(2, 0, 1)


def _shape(pictures: Sequence[Picture], options: ImageOptions) -> _Shape:
    """Find the common shape ``(C, S, S)`` from the file headers."""
    # One coloured picture makes the set RGB. Without ?size=, the first picture gives the size.
    size, channels = options.size or 0, 1
    heads = zip(pictures, _map(_head, pictures), strict=True)
    for picture, (width, height, coloured) in heads:
        channels = 3 if coloured else channels
        size = size or width
        if options.size is None and (width, height) != (size, size):
            first = f"but {pictures[0]} is {size} x {size}"
            wanted = "which is not square" if width != height else first
            raise UserError(
                f"{picture} is {width} x {height} pixels, {wanted}; all images should be square "
                "and of one size: crop or resize them, or add ?size=N (pixels) to the data's "
                "address"
            )
    return channels, size, size


def _decode(
    pictures: Sequence[Picture], shape: _Shape, options: ImageOptions, lost: list[str]
) -> tuple[Tensor, Tensor]:
    """Decode pictures to images ``[N, C, S, S]``, uint8, and labels ``[N]``."""
    what = f"{len(pictures)} images of {shape[1]} x {shape[2]} pixels"
    needed = len(pictures) * math.prod(shape)
    check_memory(what, needed, "choose a smaller ?size= or fewer ?classes=")
    images = np.empty((len(pictures), *shape), np.uint8)

    # Safe in threads: each call writes its own row, and list.append is atomic.
    def fill(entry: tuple[int, Picture]) -> None:
        index, picture = entry
        with _opened(picture) as image:
            images[index] = to_array(str(picture), image, shape, options, lost)

    for _ in _map(fill, list(enumerate(pictures))):
        pass
    return torch.from_numpy(images), torch.tensor([label for label, *_ in pictures])


def _head(picture: Picture) -> tuple[int, int, bool]:
    """Return width, height, and True if the image has colours."""
    with _opened(picture) as image:
        grey = image.mode in _GREY or image.mode.startswith(_DEEP)
        return *image.size, not grey


@contextmanager
def _opened(picture: Picture) -> Iterator[Image.Image]:
    """Open a picture; Pillow reads only the header of a file until pixels are needed."""
    try:
        source = picture.source if isinstance(picture.source, Path) else picture.source()
        if isinstance(source, Image.Image):
            yield source
            return
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            yield image
    except UserError:
        raise
    except _UNREADABLE as error:
        cause = getattr(error, "strerror", None) or error
        raise UserError(
            f"{picture} cannot be read as an image ({cause}); repair or remove it, or, if "
            "you trust the file and it is only too large, add ?large=allow to the data's address"
        ) from error


@contextmanager
def _limits(options: ImageOptions) -> Iterator[None]:
    """Silence Pillow's warnings about size and EXIF; lift its size limit for ``large=allow``."""
    most = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", "Corrupt EXIF data")
        Image.MAX_IMAGE_PIXELS = most if options.large == "refuse" else None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = most


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) to 8; 0 if it is missing or unreadable."""
    # PNG files without an "exif" entry are skipped: getexif() would decode the whole file.
    if "exif" in image.info or image.format == "TIFF":
        with suppress(*_UNREADABLE):
            found = image.getexif().get(_ORIENTATION, 0)
            return found if found in range(1, 9) else 0
    return 0


def _eight_bits(
    what: str, image: Image.Image, options: ImageOptions, lost: list[str]
) -> Image.Image:
    """Convert an image with more than 8 bits per channel to 8-bit grey."""
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


def _opaque(image: Image.Image, options: ImageOptions, lost: list[str]) -> Image.Image:
    """Remove the alpha channel: drop it, or blend the image with a background colour."""
    image = image.convert("RGBA")
    if min(image.getchannel("A").tobytes()) < 255:
        if options.alpha == "drop":
            lost.append(_TRANSPARENT)
        else:
            background = Image.new("RGBA", image.size, options.alpha)
            image = Image.alpha_composite(background, image)
    return image.convert("RGB")


def _map(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    """Apply a function to items in threads; yield results in order. A failure cancels the rest."""
    pool = ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1))
    try:
        for start in range(0, len(items), _AT_ONCE):
            yield from pool.map(function, items[start : start + _AT_ONCE])
    finally:
        pool.shutdown(cancel_futures=True)
