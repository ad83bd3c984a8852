"""Maps between pixels and network inputs: their interface, and channel normalisation."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from trajmatch.errors import UserError

#: Map from the kept images of a batch to network inputs; see :meth:`Preprocessing.staged`.
Normalise = Callable[[Tensor], Tensor]


class Preprocessing(Protocol):
    """Invertible map from pixels to network inputs, stored as a JSON spec and named tensors."""

    def apply(self, images: Tensor) -> Tensor:
        """Convert pixels ``[N, C, S, S]`` to float32 network inputs in new memory.

        Pixels are uint8 (0..255) or floating point (0..1; learned images may leave this range), on
        the same device as this object.
        """

    def invert(self, images: Tensor) -> Tensor:
        """Convert network inputs to pixels in 0..1 of the same dtype, without clipping."""

    def to(self, device: str | torch.device) -> Self:
        """Return a copy with its constants on a device, so that applying it needs no transfer."""

    def spec(self) -> dict[str, Any]:
        """Return a JSON description."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that belong to the spec, by name."""
        return {}

    def staged(self, images: Tensor) -> tuple[Tensor, Normalise]:
        """Split :meth:`apply` into work done once and cheap work per batch.

        Returns ``(kept, finish)``; ``finish(kept[batch])`` gives the network inputs. Channel
        normalisation keeps the pixels and runs per batch. ZCA, a large matrix product, runs once.
        """
        return images, self.to(images.device).apply

    def same_as(self, other: "Preprocessing") -> bool:
        """Return True if the other map has the same spec and equal tensors."""
        mine, theirs = self.tensors(), other.tensors()
        return self.spec() == other.spec() and all(
            torch.equal(tensor, theirs[name].to(tensor.device)) for name, tensor in mine.items()
        )


@dataclass(frozen=True)
class ChannelNormalisation(Preprocessing):
    """Channel normalisation ``(x - mean) / std`` of pixels in 0..1, one number per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: str | torch.device = "cpu"

    def apply(self, images: Tensor) -> Tensor:
        """Convert pixels to network inputs."""
        self._check_channels(images)
        shift, scale = self._constants
        return unit(images).sub_(shift).div_(scale)

    def invert(self, images: Tensor) -> Tensor:
        """Convert network inputs to pixels."""
        self._check_channels(images)
        mean, std = self._columns(images.dtype, images.device)
        return torch.addcmul(mean, images, std)

    def _check_channels(self, images: Tensor) -> None:
        if images.shape[-3] != len(self.mean):
            raise ValueError(
                f"expected mean and std to have {images.shape[-3]} numbers, one for each channel, "
                f"but got {len(self.mean)}"
            )

    def to(self, device: str | torch.device) -> "ChannelNormalisation":
        """Return a copy on a device."""
        return ChannelNormalisation(self.mean, self.std, device)

    def spec(self) -> dict[str, Any]:
        """Return ``mean`` and ``std`` as lists."""
        return {"mean": list(self.mean), "std": list(self.std)}

    @cached_property
    def _constants(self) -> tuple[Tensor, Tensor]:
        return self._columns(torch.float32, self.device)

    def _columns(self, dtype: torch.dtype, device: str | torch.device) -> tuple[Tensor, Tensor]:
        mean, std = torch.tensor([self.mean, self.std], dtype=dtype, device=device)[..., None, None]
        return mean, std


def unit(images: Tensor) -> Tensor:
    """Return pixels as float32 in 0..1, in new memory; TypeError unless uint8 or floating point."""
    if images.dtype == torch.uint8:
        return images.to(torch.float32).div_(255)
    if not images.is_floating_point():
        raise TypeError(f"expected images to be uint8 or floating point, but got {images.dtype}")
    return images.to(torch.float32, copy=True)


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and population standard deviation of each channel, for pixels in 0..1.

    ``images`` is ``[N, C, H, W]``, uint8. The result is the same on every machine.

    Raises:
        UserError: A channel is constant, so its standard deviation is 0.
    """
    count = images.numel() // images.shape[1]
    mean, std = [], []
    for channel in images.unbind(1):
        # Sums over the 256 values, as Python integers, are exact and cannot overflow.
        histogram = torch.bincount(channel.flatten(), minlength=256).tolist()
        total = sum(value * number for value, number in enumerate(histogram))
        squares = sum(value * value * number for value, number in enumerate(histogram))
        mean.append(total / (255 * count))
        # Var(x) = (n sum x^2 - (sum x)^2) / n^2; the integers are exact until the square root.
        std.append(math.sqrt(count * squares - total * total) / (255 * count))
    if 0.0 in std:
        raise UserError(
            f"channel {std.index(0.0)} of the training images has one value everywhere, so it "
            "cannot be normalised; check the images, or leave the channel out"
        )
    return tuple(mean), tuple(std)
