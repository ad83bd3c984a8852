"""Mean and standard deviation of each channel, and the map between pixels and network inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trajmatch.data.preprocessing import ChannelNormalisation
from trajmatch.errors import UserError

_CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

#: Mean and standard deviation of each channel by which the papers' programs normalise a data set
#: without ZCA. CIFAR and ImageNet: MTT's and FTD's code, which has the numbers of CIFAR-10 for
#: CIFAR-100 too; their deviation is smaller than that of CIFAR's pixels (0.247 for red). The
#: others: the code of Dataset Condensation (Zhao et al., 2021), which MTT's is adapted from.
PUBLISHED = {
    "cifar10": _CIFAR,
    "cifar100": _CIFAR,
    "imagenet": _IMAGENET,
    "tiny-imagenet": _IMAGENET,
    "mnist": ((0.1307,), (0.3081,)),
    "fashion-mnist": ((0.2861,), (0.3530,)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
}


def published_statistics(
    name: str, channels: int, instead: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Look up the constants by which the papers' programs normalise a data set.

    Args:
        name: Name of the data set, perhaps with options.
        channels: Channels of its images.
        instead: Remedy where there are none, for the message.

    Returns:
        ``(mean, std)``, one number per channel each, for pixels from 0 to 1.

    Raises:
        UserError: There are none for this set.
    """
    found = PUBLISHED.get(name.partition("?")[0])
    if found is None or len(found[0]) != channels:
        raise UserError(
            f"there are no published statistics of the data set {name} with {channels} channels, "
            f"only of {', '.join(PUBLISHED)}; {instead}"
        )
    return found


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all images and pixels.

    The sums are made in integers, so the result is the same whatever the machine and the number of
    threads.

    Args:
        images: ``[N, C, H, W]``, uint8, not empty.

    Returns:
        ``(mean, std)``, each of length ``C``, of the pixels as numbers from 0 to 1. The standard
        deviation is that of the population (divided by the count, not by the count less one).

    Raises:
        UserError: A channel has one value everywhere, so that nothing can be divided by its spread.
    """
    count = images.numel() // images.shape[1]
    mean, std = [], []
    for channel in images.unbind(1):
        histogram = torch.bincount(channel.flatten(), minlength=256).tolist()
        total = sum(value * number for value, number in enumerate(histogram))
        squares = sum(value * value * number for value, number in enumerate(histogram))
        mean.append(total / (255 * count))
        std.append(math.sqrt(count * squares - total * total) / (255 * count))
    if 0.0 in std:
        raise UserError(
            f"channel {std.index(0.0)} of the training images has one value everywhere, so it "
            "cannot be normalised; check the images, or leave the channel out"
        )
    return tuple(mean), tuple(std)


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Pixels as network inputs: ``(x / 255 - mean) / std``, channel by channel.

    Args:
        images: ``[N, C, H, W]``, uint8, on any device.
        mean: One number per channel, for pixels from 0 to 1.
        std: Likewise, not 0.

    Returns:
        ``[N, C, H, W]``, float32, on the device of ``images``.

    Raises:
        TypeError: ``images`` is not uint8.
    """
    return normaliser(mean, std, images.device)(images)


def normaliser(
    mean: Sequence[float], std: Sequence[float], device: str | torch.device
) -> Callable[[Tensor], Tensor]:
    """:func:`normalise` for many batches on one device.

    Mean and standard deviation are brought there once: on a GPU every number that comes from the
    host makes the host wait for all that was launched before.

    Args:
        mean: One number per channel, for pixels from 0 to 1.
        std: Likewise, not 0.
        device: Where the images will be.

    Returns:
        Maps ``[N, C, H, W]``, uint8, to the same shape, float32.
    """
    normalisation = ChannelNormalisation(tuple(mean), tuple(std), device)

    def normalised(images: Tensor) -> Tensor:
        if images.dtype != torch.uint8:
            raise TypeError(f"normalise: expected images to be uint8, but got {images.dtype}")
        return normalisation.apply(images)

    return normalised


def denormalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Network inputs as pictures: ``x * std + mean``, cut to what a picture can show.

    Args:
        images: ``[N, C, H, W]``, floating point, on any device. A learned image may leave the range
            of real pixels; what lies outside is moved to 0 or 1.
        mean: One number per channel, as :func:`normalise` was given.
        std: Likewise.

    Returns:
        ``[N, C, H, W]``, from 0 to 1, dtype and device of ``images``.

    Raises:
        TypeError: ``images`` is not floating point.
    """
    if not images.is_floating_point():
        raise TypeError(f"denormalise: expected images to be floating point, got {images.dtype}")
    return ChannelNormalisation(tuple(mean), tuple(std)).invert(images).clamp(0, 1)
