"""The six groups of DSA as functions of images and explicit parameters.

Every function is linear in the images plus a constant, differentiable in them (twice; the second
derivative is 0), takes one parameter per image and changes nothing in place. In all of them
``images`` is ``[B, C, H, W]``, floating point, and a parameter is ``[B]``, of the dtype and on the
device of ``images`` unless said otherwise. Parameters get no gradient of use: they are drawn, not
learned.

Source: Zhao and Bilen, "Dataset Condensation with Differentiable Siamese Augmentation" (ICML 2021),
as the experts of trajectory matching (MTT) use it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def color(images: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    """Brightness, then saturation, then contrast.

    The three steps are ``x + brightness``; ``(x - m) * saturation + m`` with ``m`` the mean over
    channels of each pixel; ``(x - m) * contrast + m`` with ``m`` the mean of the whole image. Since
    neither the second nor the third step moves the mean of the image, they are one expression.

    Args:
        images: ``[B, C, H, W]``.
        brightness: Added to every value. ``[B]``.
        saturation: Factor of the distance from grey; of no effect on one channel. ``[B]``.
        contrast: Factor of the distance from the mean. ``[B]``.

    Returns:
        ``[B, C, H, W]``.
    """
    brightness, saturation, contrast = map(_per_image, (brightness, saturation, contrast))
    grey = images.mean(1, keepdim=True)
    mean = grey.mean((2, 3), keepdim=True)
    constant = torch.addcmul(mean + brightness, mean, contrast, value=-1)
    base = torch.addcmul(constant, grey, contrast * (1 - saturation))
    return torch.addcmul(base, images, contrast * saturation)


def crop(images: Tensor, shift_y: Tensor, shift_x: Tensor, largest: int) -> Tensor:
    """Moves the window over the image; what comes in from outside is 0.

    Pixel ``(y, x)`` of the result is pixel ``(y + shift_y, x + shift_x)`` of the image.

    Args:
        images: ``[B, C, H, W]``.
        shift_y: Pixels, from ``-largest`` to ``largest``. ``[B]``, int64.
        shift_x: Likewise.
        largest: Width of the border of zeros that is put round the images.

    Returns:
        ``[B, C, H, W]``.
    """
    count, channels, height, width = images.shape
    device = images.device
    stride = width + 2 * largest
    window = torch.arange(height, device=device)[:, None] * stride
    window = (window + torch.arange(width, device=device)).view(1, 1, -1)
    origin = (shift_y + largest) * stride + shift_x + largest
    index = (origin.view(-1, 1, 1) + window).expand(-1, channels, -1)
    padded = F.pad(images, (largest,) * 4).flatten(2)
    return padded.gather(2, index).view(count, channels, height, width)


def cutout(images: Tensor, center_y: Tensor, center_x: Tensor, size: tuple[int, int]) -> Tensor:
    """Sets a rectangle to 0; the part of it that lies outside of the image is lost.

    Args:
        images: ``[B, C, H, W]``.
        center_y: First row plus half of the rectangle's height, rounded down. ``[B]``, int64.
        center_x: Likewise for columns.
        size: Height and width of the rectangle, in pixels.

    Returns:
        ``[B, C, H, W]``.
    """
    rows = _covered(images.shape[2], center_y, size[0])
    columns = _covered(images.shape[3], center_x, size[1])
    return images.masked_fill((rows[:, :, None] & columns[:, None, :]).unsqueeze(1), 0)


def flip(images: Tensor, flipped: Tensor) -> Tensor:
    """Exchanges left and right.

    Args:
        images: ``[B, C, H, W]``.
        flipped: Which images. ``[B]``, bool.

    Returns:
        ``[B, C, H, W]``.
    """
    return torch.where(_per_image(flipped), images.flip(3), images)


def scale(images: Tensor, scale_x: Tensor, scale_y: Tensor) -> Tensor:
    """Shrinks or enlarges about the centre, bilinear, with 0 outside.

    With coordinates from -1 to 1 between the centres of the first and last pixel, the value at
    ``(x, y)`` is that of the image at ``(scale_x * x, scale_y * y)``: factors above 1 shrink.

    Args:
        images: ``[B, C, H, W]``.
        scale_x: Factor of the horizontal coordinate. ``[B]``.
        scale_y: Factor of the vertical one. ``[B]``.

    Returns:
        ``[B, C, H, W]``.
    """
    x, y = _coordinates(images)
    return _sample(images, scale_x.view(-1, 1, 1) * x, scale_y.view(-1, 1, 1) * y)


def rotate(images: Tensor, angle: Tensor) -> Tensor:
    """Turns about the centre, bilinear, with 0 outside.

    In the coordinates of :func:`scale`, the value at ``(x, y)`` is that of the image at
    ``(x cos a - y sin a, x sin a + y cos a)``; ``y`` points down, so positive angles turn the
    picture anticlockwise.

    Args:
        images: ``[B, C, H, W]``.
        angle: In radians. ``[B]``.

    Returns:
        ``[B, C, H, W]``.
    """
    x, y = _coordinates(images)
    cosine, sine = angle.cos().view(-1, 1, 1), angle.sin().view(-1, 1, 1)
    return _sample(images, cosine * x - sine * y, sine * x + cosine * y)


def _per_image(parameter: Tensor) -> Tensor:
    return parameter.view(-1, 1, 1, 1)


def _covered(length: int, center: Tensor, size: int) -> Tensor:
    """Which of ``length`` places lie in the ``size`` places about each centre, ``[B, length]``."""
    place = torch.arange(length, device=center.device) - (center - size // 2).unsqueeze(1)
    return (place >= 0) & (place < size)


def _coordinates(images: Tensor) -> tuple[Tensor, Tensor]:
    """``x`` as ``[1, W]`` and ``y`` as ``[H, 1]``, from -1 to 1."""
    dtype, device = images.dtype, images.device
    x = torch.linspace(-1, 1, images.shape[3], dtype=dtype, device=device)
    y = torch.linspace(-1, 1, images.shape[2], dtype=dtype, device=device)
    return x[None, :], y[:, None]


def _sample(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Bilinear samples at ``x`` and ``y``, each of a shape that broadcasts to ``[B, H, W]``."""
    shape = (len(images), *images.shape[2:])
    grid = torch.stack((x.expand(shape), y.expand(shape)), -1)
    return F.grid_sample(images, grid, align_corners=True)
