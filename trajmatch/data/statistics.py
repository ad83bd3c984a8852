"""Mean and standard deviation of each channel of the images of a data set."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trajmatch.data.known_sets import KNOWN_SETS
from trajmatch.errors import UserError


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
    found = KNOWN_SETS.get(name.partition("?")[0])
    if found is None or len(found.mean) != channels:
        raise UserError(
            f"there are no published statistics of the data set {name} with {channels} channels, "
            f"only of {', '.join(KNOWN_SETS)}; {instead}"
        )
    return found.mean, found.std


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
