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

_BRIGHTNESS = 0.5
_SATURATION = (0.0, 2.0)
_CONTRAST = (0.5, 1.5)
_CROP = 0.125  # largest shift, part of the size
_CUTOUT = 0.5  # side of the square, part of the size
_FLIP = 0.5  # probability
_SCALE = (1 / 1.2, 1.2)
_ROTATE = math.radians(15)


class DSA:
    """A strategy: the groups of which one is drawn per batch.

    Args:
        strategy: Groups joined with underscores, from ``color``, ``crop``, ``cutout``, ``flip``,
            ``scale`` and ``rotate``; or ``none`` for no augmentation. Which group a seed gives
            depends on the order.

    Raises:
        UserError: A group is unknown or named twice.

    Example:
        >>> augment = DSA("flip_crop").replay(seed=0)
        >>> augmented = augment(torch.zeros(10, 3, 32, 32), 7)  # step 7: always the same
    """

    def __init__(self, strategy: str = "color_crop_cutout_flip_scale_rotate") -> None:
        """Takes the strategy apart."""
        if not isinstance(strategy, str):
            raise TypeError(
                "DSA: expected strategy to be a text such as 'flip_crop', but got "
                f"{type(strategy).__name__}"
            )
        groups = () if strategy == "none" else tuple(strategy.split("_"))
        if not set(groups) <= set(_GROUPS) or len(set(groups)) < len(groups):
            raise UserError(
                f"the DSA strategy {strategy!r} should name groups from {', '.join(_GROUPS)}, each "
                "at most once and joined with underscores, or be 'none'"
            )
        self._spec = strategy
        self._groups = groups

    @property
    def spec(self) -> str:
        """The strategy, as given."""
        return self._spec

    def __repr__(self) -> str:
        """The call that makes an equal object."""
        return f"DSA({self._spec!r})"

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """Augments a batch.

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
        if images.ndim != 4:
            raise ValueError(
                f"DSA: expected images to have shape [B, C, H, W], but got {list(images.shape)}"
            )
        if not images.is_floating_point():
            raise TypeError(f"DSA: expected images to be floating point, but got {images.dtype}")
        if not self._groups:
            return images
        count, _, height, width = images.shape
        return self.draw(count, height, width, generator)(images)

    def draw(self, count: int, height: int, width: int, generator: Generator) -> Transformation:
        """Draws a group and its parameters, to be applied to any images of that size.

        The numbers are drawn as float32 on the CPU whatever the images are, so that a seed means
        the same transformation in every dtype and on every device.

        Args:
            count: Number of images ``B``.
            height: Height of the images in pixels.
            width: Their width.
            generator: A CPU generator.

        Returns:
            The transformation.

        Raises:
            ValueError: The strategy is ``none``, which has nothing to draw.
        """
        if not self._groups:
            raise ValueError("DSA: the strategy 'none' has no transformation to draw")
        group = self._groups[int(torch.randint(len(self._groups), (), generator=generator))]
        return _GROUPS[group](count, height, width, generator)

    def replay(self, seed: int) -> Replay:
        """Augmentation that depends on the step alone, as ``trajmatch.ops.unroll`` wants it.

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

    It has what :func:`trajmatch.ops.unroll` needs to augment inside of its own loop
    (:class:`trajmatch.ops.DsaReplay`).

    Attributes:
        dsa: The strategy.
        seed: Chooses the sequence of transformations.
    """

    dsa: DSA
    seed: int

    def __call__(self, images: Tensor, step: int) -> Tensor:
        """Augments a batch.

        Args:
            images: ``[B, C, H, W]``, float32 or float64, on any device.
            step: Which transformation.

        Returns:
            ``[B, C, H, W]``, as :meth:`DSA.__call__` gives it.
        """
        return self.dsa(images, self._generator(step))

    def dsa_parameters(self, step: int, count: int, height: int, width: int) -> Tensor:
        """What a call with that step does to images of that size.

        Args:
            step: Which transformation.
            count: Number of images ``B``.
            height: Height of the images in pixels.
            width: Their width.

        Returns:
            Rows for :func:`trajmatch.ops.dsa`. ``[B, 5]``, float64, on the CPU.
        """
        if self.dsa.spec == "none":
            return dsa_parameters.flip(torch.zeros(count))
        return self.dsa.draw(count, height, width, self._generator(step)).rows

    def _generator(self, step: int) -> Generator:
        return named_generator(self.seed, "dsa", step)


@dataclass(frozen=True, eq=False)
class Transformation:
    """One group with its parameters drawn.

    Attributes:
        group: Name of the group.
        parameters: What was drawn, each ``[B]``, on the CPU: brightness, saturation and contrast;
            shift of rows and of columns; row and column in the middle of the square; whether
            flipped; factor in x and in y; angle in radians.
        rows: The same for :func:`trajmatch.ops.dsa`. ``[B, 5]``, float64, on the CPU.
    """

    group: str
    parameters: tuple[Tensor, ...]
    rows: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """Applies it.

        Args:
            images: ``[B, C, H, W]``, float32 or float64, on any device, of the size it was drawn
                for.

        Returns:
            ``[B, C, H, W]``, dtype and device of ``images``. Differentiable in ``images``.
        """
        return ops.dsa(images, _on_device(self.rows, images.device))


def _on_device(rows: Tensor, device: torch.device) -> Tensor:
    """Parameters where the images are; on a GPU the host does not wait for what runs there."""
    if device.type == "cuda":
        return rows.pin_memory().to(device, non_blocking=True)
    return rows.to(device)


def _round(pixels: float) -> int:
    """Half up, where Python's own ``round`` goes to the even neighbour."""
    return math.floor(pixels + 0.5)


def _uniform(low: float, high: float, count: int, generator: Generator) -> Tensor:
    return torch.rand(count, generator=generator).mul_(high - low).add_(low)


def _integers(low: int, high: int, count: int, generator: Generator) -> Tensor:
    """From ``low`` to ``high``, both included."""
    return torch.randint(low, high + 1, (count,), generator=generator)


def _draw_color(count: int, height: int, width: int, generator: Generator) -> Transformation:
    parameters = (
        _uniform(-_BRIGHTNESS, _BRIGHTNESS, count, generator),
        _uniform(*_SATURATION, count, generator),
        _uniform(*_CONTRAST, count, generator),
    )
    return Transformation("color", parameters, dsa_parameters.color(*parameters))


def _draw_crop(count: int, height: int, width: int, generator: Generator) -> Transformation:
    rows, columns = _round(_CROP * height), _round(_CROP * width)
    parameters = (
        _integers(-rows, rows, count, generator),
        _integers(-columns, columns, count, generator),
    )
    return Transformation("crop", parameters, dsa_parameters.crop(*parameters))


def _draw_cutout(count: int, height: int, width: int, generator: Generator) -> Transformation:
    rows, columns = _round(_CUTOUT * height), _round(_CUTOUT * width)
    # A square of even side has its centre on a corner between pixels: one place more than pixels.
    y = _integers(0, height - rows % 2, count, generator)
    x = _integers(0, width - columns % 2, count, generator)
    square = dsa_parameters.cutout(y - rows // 2, x - columns // 2, rows, columns)
    return Transformation("cutout", (y, x), square)


def _draw_flip(count: int, height: int, width: int, generator: Generator) -> Transformation:
    flipped = torch.rand(count, generator=generator) < _FLIP
    return Transformation("flip", (flipped,), dsa_parameters.flip(flipped))


def _draw_scale(count: int, height: int, width: int, generator: Generator) -> Transformation:
    factors = _uniform(*_SCALE, count, generator), _uniform(*_SCALE, count, generator)
    return Transformation("scale", factors, dsa_parameters.scale(*factors))


def _draw_rotate(count: int, height: int, width: int, generator: Generator) -> Transformation:
    angle = _uniform(-_ROTATE, _ROTATE, count, generator)
    return Transformation("rotate", (angle,), dsa_parameters.rotate(angle))


_GROUPS = {
    "color": _draw_color,
    "crop": _draw_crop,
    "cutout": _draw_cutout,
    "flip": _draw_flip,
    "scale": _draw_scale,
    "rotate": _draw_rotate,
}
