"""The student's step size eta, learned beside the images."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class StepSize:
    """The step size and what its optimiser remembers, in double precision.

    Single precision would lose the updates: with the papers' ``lr_lr`` of 1e-7 they are often
    smaller than its spacing.

    Attributes:
        value: eta, the learning rate of the student.
        buffer: Momentum buffer ``v`` of dL/deta.
    """

    value: float
    buffer: float = 0.0

    def updated(
        self, grad: float, lr: float, momentum: float, parametrisation: Literal["exp", "raw"]
    ) -> StepSize:
        """One step of SGD with momentum, ``v <- momentum * v + grad``, on eta.

        ``"raw"`` is the papers' ``eta <- eta - lr * v``, which can turn negative. ``"exp"`` is
        ``eta <- eta * exp(-lr * v / eta)``: the same to first order in ``lr``, so that the papers'
        ``lr_lr`` keeps its meaning, and positive by construction.

        Args:
            grad: dL/deta.
            lr: Learning rate of eta (MTT: ``lr_lr``).
            momentum: Momentum, at least 0 and below 1.
            parametrisation: ``"exp"`` or ``"raw"``.

        Returns:
            The new step size. Infinite where the step is too large for a number.
        """
        buffer = momentum * self.buffer + grad
        if parametrisation == "raw":
            return StepSize(self.value - lr * buffer, buffer)
        try:
            return StepSize(self.value * math.exp(-lr * buffer / self.value), buffer)
        except OverflowError:
            return replace(self, value=math.inf, buffer=buffer)
