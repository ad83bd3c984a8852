"""Settings of the student's optimiser.

Names, defaults and formulas are those of ``torch.optim.SGD``, ``Adam`` and ``AdamW``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from trajmatch.ops.arguments import Expect


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent, with momentum and weight decay.

    Attributes:
        momentum: Factor of the momentum buffer, at least 0.
        nesterov: True for Nesterov's momentum.
        weight_decay: Factor of the parameters that is added to their gradient, at least 0.

    Raises:
        ValueError: A value is out of its range, or ``nesterov`` is without momentum.
    """

    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        expect = Expect("SGD")
        _at_least_0(expect, "momentum", self.momentum)
        _at_least_0(expect, "weight_decay", self.weight_decay)
        wanted = "be above 0 with nesterov"
        expect.that(not self.nesterov or self.momentum > 0, "momentum", wanted, self.momentum)

    @property
    def state_rows(self) -> int:
        """Vectors of the state: the momentum buffer, or none."""
        return int(self.momentum > 0)

    def numbers(self) -> list[float]:
        """The settings as the C++ operators take them."""
        return [0.0, float(self.momentum), float(self.nesterov), float(self.weight_decay)]


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma and Ba, ICLR 2015), or AdamW (Loshchilov and Hutter, ICLR 2019).

    Attributes:
        betas: Decay of the averages of the gradient and of its square, in [0, 1).
        eps: Added to the root of the average of squares, outside of the root; above 0, so that a
            parameter whose gradient has always been 0 stays where it is.
        weight_decay: Factor of the parameters that is added to their gradient, at least 0.
        decoupled: True for AdamW: parameters shrink by ``lr * weight_decay`` before the step
            instead. (The default of ``torch.optim.AdamW`` is a weight decay of 0.01.)

    Raises:
        ValueError: A value is out of its range.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled: bool = False

    def __post_init__(self) -> None:
        expect = Expect("Adam")
        fits = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        expect.that(fits, "betas", "be two numbers in [0, 1)", self.betas)
        fits = 0 < self.eps < math.inf
        expect.that(fits, "eps", "be above 0", self.eps)
        _at_least_0(expect, "weight_decay", self.weight_decay)

    @property
    def state_rows(self) -> int:
        """Vectors of the state: the averages of the gradient and of its square."""
        return 2

    def numbers(self) -> list[float]:
        """The settings as the C++ operators take them."""
        rest = (*self.betas, self.eps, self.weight_decay, self.decoupled)
        return [1.0, *map(float, rest)]


Optimiser = SGD | Adam


def _at_least_0(expect: Expect, argument: str, value: float) -> None:
    expect.that(0 <= value < math.inf, argument, "be at least 0", value)
