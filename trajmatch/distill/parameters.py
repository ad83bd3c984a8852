"""Outer parameters: the named tensors that a run learns, each with its optimiser.

They are the images' parameters (:mod:`trajmatch.images`), ``labels`` and ``step_size``, the
student's learning rate eta. All code that handles the state loops over the names.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from trajmatch.errors import UserError
from trajmatch.images.parametrisation import Tensors
from trajmatch.importing import described

#: Names of the parameters that do not belong to the images.
LABELS, STEP_SIZE = "labels", "step_size"

#: Name prefix of an objective's memory: tensors that are constant within an iteration. The tasks
#: return their next values.
MEMORY = "memory."

#: Name of the mask that multiplies the images' gradient, if there is one.
MASK = "gradient_mask"


class SyntheticSet(NamedTuple):
    """Images with labels, ordered by class.

    Attributes:
        images: In normalised space. ``[n, C, H, W]``, float32.
        labels: Class indices ``[n]``, int64; or target logits ``[n, K]``, float32; or, for
            regression, target outputs ``[n, D]``.
    """

    images: Tensor
    labels: Tensor


@dataclass(frozen=True, kw_only=True)
class Optimiser(ABC):
    """Update rule of an outer parameter.

    Attributes:
        lr: Learning rate.
        flag: Command-line flag of the learning rate, for messages.
        clip: Gradients are shortened to at most this multiple of the running mean (decay 0.9) of
            the norms of earlier gradients after clipping (RaT-BPTT: 2). None: no clipping.
        positive: True if the value must stay positive and must not jump.
    """

    lr: float
    flag: str
    clip: float | None = None
    positive: bool = False

    def begin(self, value: Tensor) -> dict[str, Tensor]:
        """Return the moments before the first step, by name; subclasses add theirs."""
        return {} if self.clip is None else {"norm": value.new_zeros(())}

    @abstractmethod
    def step(self, value: Tensor, moments: Tensors, gradient: Tensor) -> tuple[Tensor, Tensors]:
        """Return the next value and moments, without in-place changes."""

    def update(self, value: Tensor, moments: Tensors, gradient: Tensor) -> tuple[Tensor, Tensors]:
        """Clip the gradient and step."""
        if self.clip is None:
            return self.step(value, moments, gradient)
        # The running norm is 0 before the first step, which is not clipped.
        norm, usual = gradient.norm(), moments["norm"]
        limit = torch.where(usual > 0, self.clip * usual, norm)
        short = torch.minimum(norm, limit)
        average = torch.where(usual > 0, 0.9 * usual + 0.1 * short, norm)
        clipped = gradient * torch.where(norm > 0, short / norm, 1.0)
        value, moments = self.step(value, moments, clipped)
        return value, {**moments, "norm": average}


@dataclass(frozen=True, kw_only=True)
class SGD(Optimiser):
    """SGD with momentum, ``v <- momentum * v + gradient``, ``value <- value - lr * v``.

    Attributes:
        momentum: At least 0 and below 1.
        multiplicative: Update ``value <- value * exp(-lr * v / value)`` instead. It is always
            positive and equal to first order in ``lr``, so the papers' ``lr_lr`` keeps its meaning.
            Overflow gives infinity.
    """

    momentum: float
    multiplicative: bool = False

    def begin(self, value: Tensor) -> dict[str, Tensor]:
        """Return the initial velocity ``v``."""
        return {"velocity": torch.zeros_like(value), **super().begin(value)}

    def step(self, value: Tensor, moments: Tensors, gradient: Tensor) -> tuple[Tensor, Tensors]:
        """See :meth:`Optimiser.step`."""
        velocity = self.momentum * moments["velocity"] + gradient
        if not self.multiplicative:
            return value - self.lr * velocity, {"velocity": velocity}
        # The C library's exp, element by element: its last bit does not depend on the SIMD width.
        growth = (-self.lr * velocity / value).apply_(_exp)
        return value * growth, {"velocity": velocity}


@dataclass(frozen=True, kw_only=True)
class Adam(Optimiser):
    """Adam (Kingma and Ba, 2015) with the defaults of ``torch.optim.Adam``."""

    def begin(self, value: Tensor) -> dict[str, Tensor]:
        """Return the means of gradient and squared gradient, and the number of steps."""
        zeros, steps = torch.zeros_like(value), value.new_zeros(())
        own = {"mean": zeros, "square": zeros.clone(), "steps": steps}
        return {**own, **super().begin(value)}

    def step(self, value: Tensor, moments: Tensors, gradient: Tensor) -> tuple[Tensor, Tensors]:
        """See :meth:`Optimiser.step`."""
        one, two, eps, steps = 0.9, 0.999, 1e-8, moments["steps"] + 1
        mean = torch.lerp(moments["mean"], gradient, 1 - one)
        square = torch.lerp(moments["square"], gradient.square(), 1 - two)
        root = (square / (1 - two**steps)).sqrt() + eps
        value = value - self.lr * (mean / (1 - one**steps)) / root
        return value, {"mean": mean, "square": square, "steps": steps}


@dataclass(frozen=True)
class OuterParameter:
    """One outer parameter of a run.

    Attributes:
        value: The tensor. The step size is float64 on the CPU: with the papers' ``lr_lr`` of 1e-7,
            updates are often smaller than the spacing of float32.
        optimiser: None for constants, such as hard labels.
        moments: Optimiser state, by name.
        free: Factor of the gradient, 0 for frozen rows and 1 for others; None: nothing is frozen.
    """

    value: Tensor
    optimiser: Optimiser | None
    moments: Tensors
    free: Tensor | None = None

    @classmethod
    def new(
        cls, value: Tensor, optimiser: Optimiser | None = None, free: Tensor | None = None
    ) -> OuterParameter:
        """Create a parameter with fresh optimiser state."""
        return cls(value, optimiser, optimiser.begin(value) if optimiser else {}, free)

    def updated(self, gradient: Tensor | None) -> OuterParameter:
        """Return the parameter after one optimiser step."""
        if self.optimiser is None or gradient is None:
            return self
        gradient = gradient.to(self.value)
        if self.free is not None:
            gradient = gradient * self.free
        value, moments = self.optimiser.update(self.value, self.moments, gradient)
        return replace(self, value=value, moments=moments)


def leaves(
    parameters: Mapping[str, OuterParameter], device: str | torch.device
) -> dict[str, Tensor]:
    """Return the values on a device; learned ones require a gradient."""
    return {
        name: parameter.value.detach().to(device).requires_grad_(parameter.optimiser is not None)
        for name, parameter in parameters.items()
    }


def fresh_leaves(parameters: Tensors) -> dict[str, Tensor]:
    """Return the values as new autograd leaves; each task needs its own, on its own stream."""
    return {
        name: value.detach().requires_grad_(value.requires_grad)
        for name, value in parameters.items()
    }


def values(parameters: Mapping[str, OuterParameter]) -> dict[str, Tensor]:
    """Return the tensors by name."""
    return {name: parameter.value for name, parameter in parameters.items()}


def learned(parameters: Mapping[str, OuterParameter]) -> dict[str, OuterParameter]:
    """Return the parameters that have an optimiser."""
    return {name: each for name, each in parameters.items() if each.optimiser is not None}


def of_images(names: Mapping[str, object]) -> list[str]:
    """Return the names of the images' parameters."""
    others = (LABELS, STEP_SIZE, MASK)
    return [name for name in names if name not in others and not name.startswith(MEMORY)]


def of_memory(names: Mapping[str, object]) -> list[str]:
    """Return the names of the objective's memory tensors."""
    return [name for name in names if name.startswith(MEMORY)]


def tensors_by_name(what: str, made: object) -> dict[str, Tensor]:
    """Return a user function's result if it maps names to tensors; else raise UserError."""
    if isinstance(made, Mapping) and all(isinstance(each, Tensor) for each in made.values()):
        return {str(name): each for name, each in made.items()}
    raise UserError(f"{what} should return tensors by name, but returned {described(made)}")


def moving_average(average: Tensor, value: Tensor, decay: float) -> Tensor:
    """Return ``decay * average + (1 - decay) * value`` (FTD).

    There is no bias correction: the initial images keep the weight ``decay^k`` after ``k`` updates.
    """
    return decay * average + (1.0 - decay) * value


def _exp(exponent: float) -> float:
    try:
        return math.exp(exponent)
    except OverflowError:
        return math.inf
