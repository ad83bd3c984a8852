"""The map between pixels and network inputs, in one object that experts, students and tests share.

It is per-channel normalisation, or ZCA whitening (:mod:`trajmatch.data.zca`). Stores of experts and
distilled files describe it as JSON and, for the matrix of ZCA, as tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from trajmatch.errors import UserError


class Preprocessing(Protocol):
    """A map from pixels to network inputs, and back."""

    def apply(self, images: Tensor) -> Tensor:
        """Turn pixels into network inputs.

        Args:
            images: ``[N, C, S, S]``, uint8 from 0 to 255 or floating point from 0 to 1 (a learned
                image may leave that range), on the device of this object.

        Returns:
            ``[N, C, S, S]``, float32, a tensor of its own.
        """

    def invert(self, images: Tensor) -> Tensor:
        """Turn network inputs into pixels, not clipped: learned images leave the real range.

        Args:
            images: ``[N, C, S, S]``, floating point, on the device of this object.

        Returns:
            ``[N, C, S, S]``, real images from 0 to 1, dtype of ``images``.
        """

    def to(self, device: str | torch.device) -> Self:
        """Return the same on a device: on a GPU, numbers from the host make it wait for the GPU."""

    def spec(self) -> dict[str, Any]:
        """Return the description for JSON."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that the description needs, by name."""
        return {}

    def staged(self, images: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Split :meth:`apply` into what is done once and what is done for each batch.

        Args:
            images: ``[N, C, S, S]``, uint8, on any device.

        Returns:
            ``(kept, finish)``, with ``finish(kept[batch])`` the network inputs of a batch. What is
            cheap is left to the batches, and the pixels stay uint8; whitening, a product with a
            large matrix, is done here.
        """
        return images, self.to(images.device).apply

    def same_as(self, other: Preprocessing) -> bool:
        """True if the other maps to the very same values."""
        mine, theirs = self.tensors(), other.tensors()
        return self.spec() == other.spec() and all(
            torch.equal(tensor, theirs[name].to(tensor.device)) for name, tensor in mine.items()
        )


@dataclass(frozen=True)
class ChannelNormalisation(Preprocessing):
    """``(x - mean) / std``, channel by channel, of pixels from 0 to 1.

    Attributes:
        mean: One number per channel.
        std: One number per channel, not 0.
        device: Where the images are.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: str | torch.device = "cpu"

    def apply(self, images: Tensor) -> Tensor:
        """Turn pixels into network inputs; see :meth:`Preprocessing.apply`."""
        self._check_channels(images)
        shift, scale = self._constants
        return unit(images).sub_(shift).div_(scale)

    def invert(self, images: Tensor) -> Tensor:
        """Turn network inputs into pixels; see :meth:`Preprocessing.invert`."""
        self._check_channels(images)
        mean, std = self._columns(images.dtype, images.device)
        return torch.addcmul(mean, images, std)

    def _check_channels(self, images: Tensor) -> None:
        """Raise ValueError for images that have another number of channels."""
        if images.shape[-3] != len(self.mean):
            raise ValueError(
                f"expected mean and std to have {images.shape[-3]} numbers, one for each channel, "
                f"but got {len(self.mean)}"
            )

    def to(self, device: str | torch.device) -> ChannelNormalisation:
        """Return the same on a device."""
        return ChannelNormalisation(self.mean, self.std, device)

    def spec(self) -> dict[str, Any]:
        """``mean`` and ``std``, one number per channel each."""
        return {"mean": list(self.mean), "std": list(self.std)}

    @cached_property
    def _constants(self) -> tuple[Tensor, Tensor]:
        return self._columns(torch.float32, self.device)

    def _columns(self, dtype: torch.dtype, device: str | torch.device) -> tuple[Tensor, Tensor]:
        """``mean`` and ``std``, ``[C, 1, 1]`` each."""
        mean, std = torch.tensor([self.mean, self.std], dtype=dtype, device=device)[..., None, None]
        return mean, std


def unit(images: Tensor) -> Tensor:
    """Return pixels as numbers from 0 to 1.

    Args:
        images: uint8, or floating point from 0 to 1 already.

    Returns:
        float32, in memory of its own.

    Raises:
        TypeError: ``images`` is of another dtype.
    """
    if images.dtype == torch.uint8:
        return images.to(torch.float32).div_(255)
    if not images.is_floating_point():
        raise TypeError(f"expected images to be uint8 or floating point, but got {images.dtype}")
    return images.to(torch.float32, copy=True)


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
