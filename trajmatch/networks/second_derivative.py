"""Whether one module is twice differentiable: tried, and compared with differences."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_DIRECTIONS = 5
# Of the root mean square: so short that of millions of inputs of a ReLU hardly one changes sign,
# and so long that what float64 rounds is 1e-5 of the gradient.
_STEP = 1e-9
_TOLERANCE = 1e-3
_TIE = 1e-2  # of the root mean square: a gap below a step is rare among millions


def obstacle(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Why a call of a module is not twice differentiable, or None.

    Args:
        module: Any module on the CPU; it is left as it is.
        args: Its arguments; the derivatives are those in the floating-point tensors among them, and
            in the parameters.
        kwargs: Its named arguments.

    Returns:
        The first line of PyTorch's message, or that a term is missing: a backward pass that is
        outside of the graph stops nothing, and makes the second derivative wrong.
    """
    try:
        _differentiate_twice(_Evaluation(module, args, kwargs))
        agrees = _agrees_with_differences(_Evaluation(module, args, kwargs, torch.float64))
    except RuntimeError as error:
        return first_line(error)
    return None if agrees else "the derivative of its gradient lacks a term (a detached backward)"


class _Evaluation:
    """A scalar function of a module's parameters and floating-point arguments.

    Args:
        module: The module; it is not changed.
        args: Its arguments.
        kwargs: Its named arguments.
        dtype: What its floating-point tensors become; None leaves them as they are.
    """

    def __init__(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        dtype: torch.dtype | None = None,
    ) -> None:
        self._module = copy.deepcopy(module).to(dtype)
        self._args = tuple(_argument(each, dtype) for each in args)
        self._kwargs = {name: _argument(each, dtype) for name, each in kwargs.items()}
        values = (*self._args, *self._kwargs.values(), *self._module.parameters())
        self.leaves = [each for each in values if isinstance(each, Tensor) and each.requires_grad]

    def gradient(self, create_graph: bool) -> list[Tensor]:
        """The gradient in every leaf."""
        # Clones of the leaves: a layer that works in place may not change a leaf.
        output = self._module(
            *map(_cloned, self._args),
            **{name: _cloned(each) for name, each in self._kwargs.items()},
        )
        outputs = [_weighted_squares(each) for each in _tensors(output) if each.requires_grad]
        if not outputs:
            return [torch.zeros_like(leaf) for leaf in self.leaves]
        return list(
            torch.autograd.grad(
                torch.stack(outputs).sum(),
                self.leaves,
                create_graph=create_graph,
                materialize_grads=True,
            )
        )

    def move(self, tangents: Sequence[Tensor], distance: float) -> None:
        """Moves every leaf along a direction."""
        with torch.no_grad():
            for leaf, tangent in zip(self.leaves, tangents, strict=True):
                leaf.add_(tangent, alpha=distance)

    def break_ties(self) -> None:
        """Moves arguments a little upwards, so that no maximum is taken among equal numbers."""
        draw = torch.Generator().manual_seed(_DIRECTIONS)
        with torch.no_grad():
            for each in (*self._args, *self._kwargs.values()):
                if isinstance(each, Tensor) and each.requires_grad:
                    noise = torch.rand(each.shape, generator=draw, dtype=each.dtype)
                    each.add_(noise, alpha=_TIE * _scale(each))


def _argument(value: Any, dtype: torch.dtype | None) -> Any:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return value.detach().to(dtype or value.dtype, copy=True).requires_grad_()


def _differentiate_twice(evaluation: _Evaluation) -> None:
    """Raise RuntimeError where an operator has no second derivative."""
    first = evaluation.gradient(create_graph=True)
    total = sum((each.square().sum() for each in first), torch.zeros(()))
    if total.requires_grad:
        # Not autograd.grad: that leaves out what does not lead to the leaves, and the error of
        # once_differentiable does not.
        total.backward()


def _agrees_with_differences(evaluation: _Evaluation) -> bool:
    """Whether the derivative of the gradient along some direction is what differences give.

    Tried in several directions: where an input of a ReLU changes sign between the two points, the
    differences mean nothing. Nor do they where values are not finite, which is not looked into.
    """
    evaluation.break_ties()
    for seed in range(_DIRECTIONS):
        draw = torch.Generator().manual_seed(seed)
        tangents = [
            torch.randn(each.shape, generator=draw, dtype=each.dtype) * _scale(each)
            for each in evaluation.leaves
        ]
        first = evaluation.gradient(create_graph=True)
        along = sum(((g * t).sum() for g, t in zip(first, tangents, strict=True)), torch.zeros(()))
        second = (
            list(torch.autograd.grad(along, evaluation.leaves, materialize_grads=True))
            if along.requires_grad
            else [torch.zeros_like(each) for each in evaluation.leaves]
        )
        evaluation.move(tangents, _STEP)
        ahead = evaluation.gradient(create_graph=False)
        evaluation.move(tangents, -2 * _STEP)
        behind = evaluation.gradient(create_graph=False)
        evaluation.move(tangents, _STEP)
        differences = [(a - b) / (2 * _STEP) for a, b in zip(ahead, behind, strict=True)]
        error = _norm([d - s for d, s in zip(differences, second, strict=True)])
        if error <= _TOLERANCE * (_norm(differences) + _norm(first)) or not math.isfinite(error):
            return True
    return False


def _scale(tensor: Tensor) -> float:
    """The root mean square, and 1 of zeros."""
    return float(tensor.detach().square().mean().sqrt()) or 1.0


def _norm(tensors: Sequence[Tensor]) -> float:
    return sum(float(each.detach().square().sum()) for each in tensors) ** 0.5


def _cloned(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for each in output.values():
            yield from _tensors(each)
    elif isinstance(output, Sequence) and not isinstance(output, str):
        for each in output:
            yield from _tensors(each)


def _weighted_squares(output: Tensor) -> Tensor:
    """A scalar whose gradient depends on every element, each in another way."""
    weights = torch.linspace(1, 2, output.numel(), dtype=output.dtype).view(output.shape)
    return (weights * output.square()).sum()


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).splitlines() or [type(error).__name__])[0]
