"""DSA, the random differentiable augmentation of experts, students and evaluation.

For every batch one of the groups of the strategy is drawn, all with the same probability; each
image of the batch then gets parameters of its own:

- ``color``: brightness in [-0.5, 0.5], then saturation in [0, 2], then contrast in [0.5, 1.5];
- ``crop``: a shift of up to an eighth of the size in each direction, with zeros coming in;
- ``cutout``: a square of half the size, centred anywhere, becomes 0;
- ``flip``: left and right exchanged with probability 1/2;
- ``scale``: both axes, independently, by a factor in [1/1.2, 1.2];
- ``rotate``: an angle in [-15, 15] degrees.

Source: Zhao and Bilen, "Dataset Condensation with Differentiable Siamese Augmentation" (ICML 2021),
in the mode and with the constants that MTT uses. Whole pixels are rounded half up, as there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from trajmatch import ops
from trajmatch.errors import UserError
from trajmatch.ops import dsa_parameters
from trajmatch.random import generator as named_generator
from trajmatch.schema import setting

_HALF, _EIGHTH = 0.5, 0.125  # of the size: side of the square, and largest shift
_FLIP = 0.5  # probability
_ROTATE = math.radians(15)
# Ranges of the groups whose parameters are any numbers.
_RANGES = {
    "color": ((-0.5, 0.5), (0.0, 2.0), (0.5, 1.5)),
    "scale": ((1 / 1.2, 1.2), (1 / 1.2, 1.2)),
    "rotate": ((-_ROTATE, _ROTATE),),
}
_GROUPS = ("color", "crop", "cutout", "flip", "scale", "rotate")


@dataclass(frozen=True)
class DSA:
    """A strategy: the groups of which one is drawn per batch.

    Attributes:
        spec: Groups joined with underscores, from ``color``, ``crop``, ``cutout``, ``flip``,
            ``scale`` and ``rotate``; or ``none`` for no augmentation. Which group a seed gives
            depends on the order.

    Raises:
        UserError: A group is unknown or named twice.

    Example:
        >>> augment = DSA("flip_crop").replay(seed=0)
        >>> augmented = augment(torch.zeros(10, 3, 32, 32), 7)  # step 7: always the same
    """

    spec: str = "_".join(_GROUPS)

    def __post_init__(self) -> None:
        """Check the groups."""
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
        """Augment a batch.

        Args:
            images: ``[B, C, H, W]``, float32 or float64, on any device.
            generator: Where the random numbers come from; a CPU generator.

        Returns:
            ``[B, C, H, W]``, dtype and device of ``images``. Differentiable (twice) in ``images``.
            With the strategy ``none`` it is ``images`` itself.

        Raises:
            ValueError: ``images`` has another number of dimensions.
            TypeError: ``images`` is neither float32 nor float64.
        """
        if not self._groups:
            return images
        height, width = images.shape[-2:]
        rows = self.draw(len(images), height, width, generator)
        if images.is_cuda:  # the host does not wait for what runs there
            rows = rows.pin_memory()
        return ops.dsa(images, rows.to(images.device, non_blocking=images.is_cuda))

    def draw(self, count: int, height: int, width: int, generator: Generator) -> Tensor:
        """Draw a group and its parameters, to be applied to any images of that size.

        The numbers are drawn as float32 on the CPU whatever the images are, so that a seed means
        the same transformation in every dtype and on every device.

        Args:
            count: Number of images ``B``.
            height: Height of the images in pixels.
            width: Their width.
            generator: A CPU generator.

        Returns:
            Rows for :func:`trajmatch.ops.dsa`. ``[B, 5]``, float64, on the CPU. Those of the
            strategy ``none`` leave the images as they are.
        """
        groups = self._groups
        if not groups:
            return dsa_parameters.flip(torch.zeros(count))
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
            # A square of even side has its centre on a corner between pixels: one place more.
            y, x = integers(0, height - rows % 2), integers(0, width - columns % 2)
            return dsa_parameters.cutout(y - rows // 2, x - columns // 2, rows, columns)
        drawn = (
            torch.rand(count, generator=generator).mul_(high - low).add_(low)
            for low, high in _RANGES[group]
        )
        return getattr(dsa_parameters, group)(*drawn)

    def replay(self, seed: int) -> Replay:
        """Return an augmentation that depends on the step alone, as ``ops.unroll`` wants it.

        Args:
            seed: Chooses the sequence of transformations.

        Returns:
            ``augment(images, step)``: augments as a call does, and in the same way each time it is
            given the same step and number of images.
        """
        return Replay(self, seed)


@dataclass(frozen=True)
class Replay:
    """DSA as a function of the step; made by :meth:`DSA.replay`.

    :func:`trajmatch.ops.unroll` augments by it inside of its own loop
    (:class:`trajmatch.ops.DsaReplay`).

    Attributes:
        dsa: The strategy.
        seed: Chooses the sequence of transformations.
    """

    dsa: DSA
    seed: int

    def __call__(self, images: Tensor, step: int) -> Tensor:
        """Augment a batch as :meth:`DSA.__call__` does; ``step`` says which transformation."""
        return self.dsa(images, named_generator(self.seed, "dsa", step))

    def dsa_parameters(self, step: int, count: int, height: int, width: int) -> Tensor:
        """Return what a call with that step does to images of that size.

        Args:
            step: Which transformation.
            count: Number of images ``B``.
            height: Height of the images in pixels.
            width: Their width.

        Returns:
            Rows for :func:`trajmatch.ops.dsa`. ``[B, 5]``, float64, on the CPU.
        """
        return self.dsa.draw(count, height, width, named_generator(self.seed, "dsa", step))


def _round(pixels: float) -> int:
    """Round half up, where Python's own ``round`` goes to the even neighbour."""
    return math.floor(pixels + 0.5)
