"""Outer parameters: the tensors that a run learns, by name, each with its optimiser.

A run has the parameters of its images (:mod:`trajmatch.distill.images`), ``labels`` and
``step_size``, the student's learning rate eta. State, updates, guard, averages, checkpoints and
exchange among processes are written over the names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

#: Names of the parameters that do not belong to the images.
LABELS, STEP_SIZE = "labels", "step_size"


class SyntheticSet(NamedTuple):
    """Images with labels, ordered by class.

    Attributes:
        images: In normalised space. ``[n, C, H, W]``, float32.
        labels: Class indices ``[n]``, int64, or target logits ``[n, K]``, float32.
    """

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class SGD:
    """SGD with momentum, ``v <- momentum * v + gradient``, ``value <- value - lr * v``.

    Attributes:
        lr: Learning rate.
        momentum: At least 0 and below 1.
        flag: The flag that sets the learning rate, for messages.
        positive: The value must stay positive and must not jump.
        multiplicative: ``value <- value * exp(-lr * v / value)`` instead: the same to first order
            in ``lr``, so that the papers' ``lr_lr`` keeps its meaning, and positive by
            construction. Infinite where the step is too large for a number.
    """

    lr: float
    momentum: float
    flag: str
    positive: bool = False
    multiplicative: bool = False

    def step(self, value: Tensor, velocity: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next value and velocity; nothing is changed in place."""
        velocity = self.momentum * velocity + gradient
        if not self.multiplicative:
            return value - self.lr * velocity, velocity
        # Element by element with the C library's exp, whose last bit no SIMD width changes.
        growth = (-self.lr * velocity / value).apply_(_exp)
        return value * growth, velocity


@dataclass(frozen=True)
class OuterParameter:
    """One tensor of a run.

    Attributes:
        value: The tensor. The step size is float64 on the CPU: with the papers' ``lr_lr`` of 1e-7
            an update is often smaller than the spacing of float32.
        optimiser: How it is updated; None for constants, such as hard labels.
        velocity: Momentum buffer, of the shape of ``value``.
    """

    value: Tensor
    optimiser: SGD | None
    velocity: Tensor

    @classmethod
    def new(cls, value: Tensor, optimiser: SGD | None = None) -> OuterParameter:
        """Make a parameter that has not been updated yet."""
        return cls(value, optimiser, torch.zeros_like(value))

    def updated(self, gradient: Tensor | None) -> OuterParameter:
        """Return the parameter after one step of its optimiser."""
        if self.optimiser is None or gradient is None:
            return self
        value, velocity = self.optimiser.step(self.value, self.velocity, gradient.to(self.value))
        return replace(self, value=value, velocity=velocity)


def leaves(
    parameters: Mapping[str, OuterParameter], device: str | torch.device
) -> dict[str, Tensor]:
    """Return the values on a device; those that are learned require a gradient."""
    return {
        name: parameter.value.detach().to(device).requires_grad_(parameter.optimiser is not None)
        for name, parameter in parameters.items()
    }


def values(parameters: Mapping[str, OuterParameter]) -> dict[str, Tensor]:
    """Return the tensors by name."""
    return {name: parameter.value for name, parameter in parameters.items()}


def learned(parameters: Mapping[str, OuterParameter]) -> dict[str, OuterParameter]:
    """Return the parameters that are no constants."""
    return {name: each for name, each in parameters.items() if each.optimiser is not None}


def of_images(names: Mapping[str, object]) -> list[str]:
    """List the names of the images' parameters."""
    return [name for name in names if name not in (LABELS, STEP_SIZE)]


def moving_average(average: Tensor, value: Tensor, decay: float) -> Tensor:
    """Return ``beta average + (1 - beta) value``, after every update (FTD).

    The average begins at the first images and has no correction of that bias: after ``k`` updates
    they still have the weight ``beta^k``.
    """
    return decay * average + (1.0 - decay) * value


def _exp(exponent: float) -> float:
    try:
        return math.exp(exponent)
    except OverflowError:
        return math.inf
