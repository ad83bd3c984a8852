"""Outer parameters: named tensors that a run learns or keeps constant.

They are the images' parameters (:mod:`trajmatch.images`), ``labels`` and ``step_size`` (the
student's learning rate eta). The objective may add constants: its memory and a gradient mask.
"""

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

#: Name prefix of an objective's memory: tensors that stay constant during an iteration. Each task
#: returns their next values.
MEMORY = "memory."

#: Name of the mask that multiplies the images' gradient, if there is one.
MASK = "gradient_mask"


class SyntheticSet(NamedTuple):
    """Images with labels, ordered by class.

    Attributes:
        images: Normalised images. ``[n, C, H, W]``, float32.
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
        clip: Largest gradient norm, as a multiple of the running mean (decay 0.9) of the clipped
            norms so far (RaT-BPTT: 2). None: no clipping.
        positive: True if the value must stay positive; the guard then limits its relative change.
    """

    lr: float
    flag: str
    clip: float | None = None
    positive: bool = False

    def begin(self, value: Tensor) -> dict[str, Tensor]:
        """Return the initial moments by name; subclasses add their own."""
        return {} if self.clip is None else {"norm": value.new_zeros(())}

    @abstractmethod
    def step(self, value: Tensor, moments: Tensors, gradient: Tensor) -> tuple[Tensor, Tensors]:
        """Return the next value and moments as new tensors."""

    def update(self, value: Tensor, moments: Tensors, gradient: Tensor) -> tuple[Tensor, Tensors]:
        """Return the next value and moments, after clipping the gradient."""
        if self.clip is None:
            return self.step(value, moments, gradient)
        # The running norm is 0 before the first step, which is not clipped. `where` decides on the
        # device; an `if` would wait for it.
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
        multiplicative: Update ``value <- value * exp(-lr * v / value)`` instead, which keeps the
            value positive. To first order in ``lr`` both updates are equal, so the papers'
            ``lr_lr`` keeps its meaning.
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
        # Use the C library's exp for each element: the last bit of PyTorch's result depends on the
        # SIMD width. math.exp raises OverflowError above 709.7, so clamp; the guard refuses such a
        # step anyway.
        growth = (-self.lr * velocity / value).clamp(max=709.0).apply_(math.exp)
        return value * growth, {"velocity": velocity}


@dataclass(frozen=True, kw_only=True)
class Adam(Optimiser):
    """Adam (Kingma and Ba, 2015) with the defaults of ``torch.optim.Adam``."""

    def begin(self, value: Tensor) -> dict[str, Tensor]:
        """Return zero means of gradient and squared gradient, and a step count of 0."""
        zeros, steps = torch.zeros_like(value), value.new_zeros(())
        own = {"mean": zeros, "square": zeros.clone(), "steps": steps}
        return {**own, **super().begin(value)}

    def step(self, value: Tensor, moments: Tensors, gradient: Tensor) -> tuple[Tensor, Tensors]:
        """See :meth:`Optimiser.step`."""
        one, two, eps, steps = 0.9, 0.999, 1e-8, moments["steps"] + 1
        mean = torch.lerp(moments["mean"], gradient, 1 - one)
        square = torch.lerp(moments["square"], gradient.square(), 1 - two)
        # Bias correction comes before eps, as in torch.optim.Adam.
        root = (square / (1 - two**steps)).sqrt() + eps
        value = value - self.lr * (mean / (1 - one**steps)) / root
        return value, {"mean": mean, "square": square, "steps": steps}


@dataclass(frozen=True)
class OuterParameter:
    """One outer parameter of a run.

    Attributes:
        value: The tensor. The step size is in float64, on the CPU: its updates are often smaller
            than the spacing of float32 (the papers set ``lr_lr`` to 1e-7).
        optimiser: Update rule; None for constants, such as hard labels.
        moments: Optimiser state, by name.
        free: Factor of the gradient, 0 for frozen rows and 1 for others. None: nothing is frozen.
    """

    value: Tensor
    optimiser: Optimiser | None
    moments: Tensors
    free: Tensor | None = None

    @classmethod
    def new(
        cls, value: Tensor, optimiser: Optimiser | None = None, free: Tensor | None = None
    ) -> "OuterParameter":
        """Create a parameter with fresh optimiser state."""
        return cls(value, optimiser, optimiser.begin(value) if optimiser else {}, free)

    def updated(self, gradient: Tensor | None) -> "OuterParameter":
        """Return the parameter after one optimiser step."""
        if self.optimiser is None or gradient is None:
            return self
        gradient = gradient.to(self.value)
        # Masked before the optimiser sees it, so that moments of frozen rows stay 0.
        if self.free is not None:
            gradient = gradient * self.free
        value, moments = self.optimiser.update(self.value, self.moments, gradient)
        return replace(self, value=value, moments=moments)


def leaves(
    parameters: Mapping[str, OuterParameter], device: str | torch.device
) -> dict[str, Tensor]:
    """Return the values on a device as autograd leaves; only learned ones require a gradient."""
    return {
        name: parameter.value.detach().to(device).requires_grad_(parameter.optimiser is not None)
        for name, parameter in parameters.items()
    }


def fresh_leaves(parameters: Tensors) -> dict[str, Tensor]:
    """Return new autograd leaves with the same values, for one task with gradients of its own."""
    return {
        name: value.detach().requires_grad_(value.requires_grad)
        for name, value in parameters.items()
    }


def values(parameters: Mapping[str, OuterParameter]) -> dict[str, Tensor]:
    """Return the values of outer parameters by name."""
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
    raise UserError(f"{what} should return a dict of tensors, but returned {described(made)}")
