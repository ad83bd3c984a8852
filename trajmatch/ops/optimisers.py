"""Optimisers of the student, with the names, defaults and formulas of ``torch.optim``."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trajmatch.networks.flat import decayed, trainable
from trajmatch.ops.arguments import ArrayLike, Expect
from trajmatch.ops.sgd_step import as_scalar
from trajmatch.reference import OptimiserState, optimiser_step, step_size


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with momentum and weight decay.

    Attributes:
        momentum: Factor of the momentum buffer, at least 0.
        nesterov: True for Nesterov momentum; needs a momentum above 0.
        weight_decay: L2 penalty, at least 0: ``weight_decay * theta`` is added to the gradient.

    Raises:
        ValueError: A value is out of its range.
        TypeError: A value is not a number.
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
        """Number of state vectors: 1 for the momentum buffer, 0 without momentum."""
        return int(self.momentum > 0)

    @property
    def plain(self) -> bool:
        """True without Nesterov momentum and weight decay: the adjoint then needs no state."""
        return not self.nesterov and self.weight_decay == 0

    def numbers(self) -> list[float]:
        """Return the settings as the C++ operators take them."""
        return [0.0, float(self.momentum), float(self.nesterov), float(self.weight_decay)]


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma and Ba, ICLR 2015), or AdamW (Loshchilov and Hutter, ICLR 2019).

    Attributes:
        betas: Decay rates of the averages of the gradient and of the squared gradient, in [0, 1).
        eps: Added to the root of the average square; above 0, to avoid a division by 0.
        weight_decay: L2 penalty, at least 0: ``weight_decay * theta`` is added to the gradient.
        decoupled: True for AdamW: instead of the penalty, each step first multiplies the parameters
            by ``1 - lr * weight_decay``. (The default weight decay of ``torch.optim.AdamW`` is
            0.01.)

    Raises:
        ValueError: A value is out of its range.
        TypeError: A value is not a number.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled: bool = False
    #: Number of state vectors: the averages of the gradient and of the squared gradient.
    state_rows: ClassVar[int] = 2
    #: The adjoint of a step needs the state.
    plain: ClassVar[bool] = False

    def __post_init__(self) -> None:
        expect = Expect("Adam")
        for beta in self.betas:
            _number(expect, "each of betas", beta)
        _number(expect, "eps", self.eps)
        fits = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        expect.that(fits, "betas", "be two numbers in [0, 1)", self.betas)
        expect.that(0 < self.eps < math.inf, "eps", "be above 0", self.eps)
        _at_least_0(expect, "weight_decay", self.weight_decay)

    def numbers(self) -> list[float]:
        """Return the settings as the C++ operators take them."""
        rest = (*self.betas, self.eps, self.weight_decay, self.decoupled)
        return [1.0, *map(float, rest)]


Optimiser = SGD | Adam


class Updates:
    """Steps of an optimiser on a model's flat parameters, and the adjoints of the steps."""

    def __init__(self, optimiser: Optimiser, model: nn.Module, done: int, theta: Tensor) -> None:
        # `done` steps came before, in earlier calls; Adam's bias correction counts them.
        self.numbers, self.done = optimiser.numbers(), done
        self._sizes = [each.numel() for each in model.parameters()]
        # A mask [P] that keeps frozen parameters from changing; None if no parameter is frozen.
        trained = trainable(model)
        self._trained = None if trained is None else trained.to(theta)

    def step(
        self, step: int, theta: Tensor, grad: Tensor, state: Tensor, lr: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the new parameters ``[P]`` and state ``[S, P]``, differentiable in all tensors."""
        rate = step_size(lr, step, self._sizes, self._trained)
        count = self.done + step + 1
        return optimiser_step(self.numbers, theta, grad, state, rate, count, self._trained)

    def adjoint(
        self,
        step: int,
        theta: Tensor,
        states: Sequence[Tensor],
        lr: Tensor,
        above: Sequence[Tensor],
    ) -> tuple[Tensor, ...]:
        """Return the gradients of a step's inputs: ``theta``, loss gradient, state and ``lr``."""
        # `states` are the states before and after the step, `above` the gradients of the new
        # parameters and of the new state.
        given = (theta, self._gradient(theta, *states), states[0], lr)
        leaves = [each.detach().requires_grad_() for each in given]
        with torch.enable_grad():
            return torch.autograd.grad(self.step(step, *leaves), leaves, above)

    def _gradient(self, theta: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """Recover the gradient of a step's loss from the states before and after the step."""
        # The first row of the state is momentum * before + grad for SGD, and
        # beta1 * before + (1 - beta1) * grad for Adam. Solve for grad, then subtract the weight
        # decay that was added to it.
        kind, factor, *_ = self.numbers
        grad = after[0] - factor * before[0]
        if kind == 0:
            weight_decay = self.numbers[3]
        else:
            grad = grad / (1 - factor)
            weight_decay = 0.0 if self.numbers[5] else self.numbers[4]
        return decayed(grad, theta, -weight_decay, self._trained)


def check_optimiser(expect: Expect, optimiser: Any, momentum: float) -> Optimiser:
    """Return the optimiser, or ``SGD(momentum)`` for None; raise if ``momentum`` is also given."""
    if optimiser is None:
        return SGD(momentum)
    if not isinstance(optimiser, Optimiser):
        wanted = "be an instance of trajmatch.ops.SGD or trajmatch.ops.Adam"
        kind = optimiser if isinstance(optimiser, type) else type(optimiser)
        came = f"{kind.__module__}.{kind.__qualname__}"
        came = f"the class {came}" if kind is optimiser else came
        raise TypeError(expect.message("optimiser", wanted, came))
    expect.that(momentum == 0, "momentum", "be left out if optimiser is given", momentum)
    return optimiser


def check_state(expect: Expect, state: Any, optimiser: Optimiser, theta: Tensor) -> None:
    """Raise unless the state is None or fits the optimiser and the parameters."""
    rows, size = optimiser.state_rows, len(theta)
    if state is None:
        return
    fits = isinstance(state, OptimiserState)
    expect.kind(fits, "state", "be a trajmatch.ops.OptimiserState", type(state).__name__)
    expect.like("state.tensors", state.tensors, theta, "theta0")
    wanted = f"have shape {[rows, size]} (the state of {optimiser} for {size} parameters)"
    came = list(state.tensors.shape)
    expect.that(came == [rows, size], "state.tensors", wanted, came)
    (steps,) = expect.counts("state.steps", [state.steps])
    expect.that(steps >= 0, "state.steps", "be at least 0", steps)


def check_lr(expect: Expect, lr: ArrayLike, theta: Tensor, steps: int, tensors: int) -> Tensor:
    """Return learning rates as a tensor; raise unless the shape is [], [N], [1, T] or [N, T]."""
    if isinstance(lr, Tensor | Real):
        lr = as_scalar(lr, theta)
    else:
        lr = expect.tensor("lr", lr, theta.device, theta.dtype).to(theta.dtype)
    expect.like("lr", lr, theta, "theta0")
    shapes = [[], [steps], [1, tensors], [steps, tensors]]
    wanted = f"have shape [], [{steps}] (one per step), [1, {tensors}] (one per parameter tensor) "
    wanted += f"or [{steps}, {tensors}] (one per step and parameter tensor)"
    expect.that(list(lr.shape) in shapes, "lr", wanted, list(lr.shape))
    return lr


def _number(expect: Expect, argument: str, value: float) -> None:
    # A tensor could require gradients, which the settings have not.
    expect.kind(isinstance(value, int | float), argument, "be a number", repr(value))


def _at_least_0(expect: Expect, argument: str, value: float) -> None:
    _number(expect, argument, value)
    expect.that(0 <= value < math.inf, argument, "be at least 0", value)
