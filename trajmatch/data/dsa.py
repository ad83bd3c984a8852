"""DSA: random differentiable augmentation for experts, students and evaluation.

A strategy is a list of groups of transformations. For each batch, one group is drawn uniformly;
every image gets its own parameters:

- ``color``: brightness in [-0.5, 0.5], then saturation in [0, 2], then contrast in [0.5, 1.5];
- ``crop``: shift by up to 1/8 of the size in each direction, zero padded;
- ``cutout``: a square of half the size, centred anywhere, set to 0;
- ``flip``: horizontal flip with probability 1/2;
- ``scale``: each axis independently by a factor in [1/1.2, 1.2];
- ``rotate``: angle in [-15, 15] degrees.

Source: Zhao and Bilen, "Dataset Condensation with Differentiable Siamese Augmentation" (ICML 2021).
The constants, the choice of one group per batch and the rounding of pixel counts (half up) follow
MTT's code.
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from trajmatch import ops
from trajmatch.errors import UserError
from trajmatch.ops import dsa_parameters
from trajmatch.random import generator as named_generator
from trajmatch.schema import setting

_HALF, _EIGHTH = 0.5, 0.125  # relative to the image size: cutout side, largest crop shift
_FLIP = 0.5  # probability
_ROTATE = math.radians(15)
# Ranges of the groups with real-valued parameters.
_RANGES = {
    "color": ((-0.5, 0.5), (0.0, 2.0), (0.5, 1.5)),
    "scale": ((1 / 1.2, 1.2), (1 / 1.2, 1.2)),
    "rotate": ((-_ROTATE, _ROTATE),),
}
_GROUPS = ("color", "crop", "cutout", "flip", "scale", "rotate")


@dataclass(frozen=True)
class DSA:
    """Augmentation strategy: the groups of transformations, one of which is drawn per batch.

    Attributes:
        spec: Groups joined with underscores, or ``none``. Their order decides which group a seed
            draws. An unknown or repeated group raises UserError.

    Example:
        >>> augment = DSA("flip_crop").replay(seed=0)
        >>> augmented = augment(torch.zeros(10, 3, 32, 32), 7)  # step 7: always the same
    """

    spec: str = "_".join(_GROUPS)

    def __post_init__(self) -> None:
        setting(self.spec, str, "the DSA strategy")
        if not set(self._groups) <= set(_GROUPS) or len(set(self._groups)) < len(self._groups):
            raise UserError(
                f"the DSA strategy {self.spec!r} should name groups from {', '.join(_GROUPS)}, "
                "each at most once and joined with underscores, or be 'none'"
            )

    @property
    def _groups(self) -> list[str]:
        return [] if self.spec == "none" else self.spec.split("_")

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """Augment a batch ``[B, C, H, W]``, float32 or float64, on any device.

        The result keeps dtype and device and is twice differentiable in ``images``. Strategy
        ``none`` returns ``images`` itself. ``generator`` must be a CPU generator.

        Raises:
            ValueError: ``images`` has another number of dimensions.
            TypeError: ``images`` has another dtype.
        """
        if not self._groups:
            return images
        height, width = images.shape[-2:]
        rows = self.draw(len(images), height, width, generator)
        # Copies from pinned memory need no synchronisation with the GPU.
        if images.is_cuda:
            rows = rows.pin_memory()
        return ops.dsa(images, rows.to(images.device, non_blocking=images.is_cuda))

    def draw(self, count: int, height: int, width: int, generator: Generator) -> Tensor:
        """Draw a group and the parameters of each image, as rows for :func:`trajmatch.ops.dsa`.

        Rows are ``[count, 5]``, float64, on the CPU; for the strategy ``none``, they leave images
        unchanged. A seed gives the same rows for images of every dtype and device.
        """
        groups = self._groups
        if not groups:
            return dsa_parameters.flip(torch.zeros(count))
        # Always draw on the CPU and in float32: other devices and dtypes give other random numbers.
        group = groups[int(torch.randint(len(groups), (), generator=generator))]

        def integers(low: int, high: int) -> Tensor:
            return torch.randint(low, high + 1, (count,), generator=generator)

        if group == "flip":
            return dsa_parameters.flip(torch.rand(count, generator=generator) < _FLIP)
        if group == "crop":
            rows, columns = _round(_EIGHTH * height), _round(_EIGHTH * width)
            return dsa_parameters.crop(integers(-rows, rows), integers(-columns, columns))
        if group == "cutout":
            rows, columns = _round(_HALF * height), _round(_HALF * width)
            # The centre of a square of even side is a corner of pixels, and an axis has one corner
            # more than pixels. MTT's cutout has the same positions.
            y, x = integers(0, height - rows % 2), integers(0, width - columns % 2)
            return dsa_parameters.cutout(y - rows // 2, x - columns // 2, rows, columns)
        drawn = (
            torch.rand(count, generator=generator).mul_(high - low).add_(low)
            for low, high in _RANGES[group]
        )
        return getattr(dsa_parameters, group)(*drawn)

    def replay(self, seed: int) -> "Replay":
        """Return a function ``augment(images, step)`` with a fixed transformation per step.

        The transformation depends only on ``seed``, ``step`` and the shape of the batch.
        """
        return Replay(self, seed)


@dataclass(frozen=True)
class Replay:
    """DSA with a fixed transformation per step, to pass to ``ops.unroll`` as ``augment``."""

    dsa: DSA
    seed: int

    def __call__(self, images: Tensor, step: int) -> Tensor:
        """Augment a batch with the transformation of ``step``; see :meth:`DSA.__call__`."""
        return self.dsa(images, named_generator(self.seed, "dsa", step))

    def dsa_parameters(self, step: int, count: int, height: int, width: int) -> Tensor:
        """Return the DSA parameters of a step, one row per image, as ``DSA.draw`` does."""
        return self.dsa.draw(count, height, width, named_generator(self.seed, "dsa", step))


def _round(pixels: float) -> int:
    """Round half up; Python's ``round`` rounds half to even."""
    return math.floor(pixels + 0.5)
