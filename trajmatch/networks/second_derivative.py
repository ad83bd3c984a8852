"""Check of a module's second derivatives by PyTorch's ``gradgradcheck``."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import gradgradcheck
from torch.autograd.gradcheck import GradcheckError
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

# Number of random directions to try before a module is refused: if an input of a ReLU changes sign
# between the two points of a finite difference, the difference is meaningless.
_DIRECTIONS = 5
# Step of the finite difference, relative to the RMS of each tensor: small enough that almost no
# ReLU input changes sign, large enough that float64 rounding stays near 1e-6 of the gradient.
_STEP = 1e-9
_TOLERANCE = 1e-3
_TIE = 1e-2  # size of the noise, also relative to the RMS, that breaks ties in max-pooling


def obstacle(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Return the reason why a call of a module is not twice differentiable, or None.

    The reason is the first line of PyTorch's error. A detached backward pass raises no error; the
    reason then says that the derivative is wrong. The check moves all floating-point arguments and
    trained parameters along one random direction, in float64, so that it takes only a few gradients
    for any size of module. The module must be on the CPU; it is not changed.
    """
    draw = torch.Generator().manual_seed(0)
    distance = torch.zeros((), dtype=torch.float64, requires_grad=True)
    check = functools.partial(gradgradcheck, eps=_STEP, atol=_TOLERANCE, rtol=_TOLERANCE)
    for _ in range(_DIRECTIONS):
        try:
            function = _along_a_line(copy.deepcopy(module).double(), args, kwargs, draw)
            value = function(distance)
            # A constant, or a slope that is not finite, cannot be compared and is accepted.
            if value.requires_grad and torch.autograd.grad(value, distance)[0].isfinite():
                check(
                    function, distance, value.detach(), check_undefined_grad=False, fast_mode=True
                )
        # A GradcheckError is also a RuntimeError, so it must come first. A ReLU input may have
        # changed its sign, so try another direction.
        except GradcheckError:
            continue
        except RuntimeError as error:
            return first_line(error)
        return None
    return (
        "its gradient has a wrong derivative (a backward that is detached or once_differentiable)"
    )


def _along_a_line(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], draw: torch.Generator
) -> Callable[[Tensor], Tensor]:
    """Return a function that calls a module with inputs and parameters moved along a random line.

    The function takes the distance of the move. It returns a weighted sum of the squared outputs,
    divided by this sum at distance 0.
    """
    trained = {name: each for name, each in module.named_parameters() if each.requires_grad}
    values, structure = tree_flatten((args, kwargs, trained))
    starts, directions = {}, {}
    for place, value in enumerate(values):
        if isinstance(value, Tensor) and value.is_floating_point():
            value = value.detach().double()
            scale = float(value.square().mean().sqrt()) or 1.0
            noise = torch.rand(value.shape, generator=draw, dtype=value.dtype)
            # Noise, because at a tie in max-pooling the gradient is not unique.
            starts[place] = value + _TIE * scale * noise
            directions[place] = scale * torch.randn(value.shape, generator=draw, dtype=value.dtype)

    def total(distance: Tensor) -> Tensor:
        moved = {each: starts[each] + distance * directions[each] for each in starts}
        inputs = [moved.get(place, value) for place, value in enumerate(values)]
        args, kwargs, trained = tree_unflatten(inputs, structure)
        result = torch.zeros((), dtype=torch.float64)
        for output in tree_leaves(functional_call(module, trained, args, kwargs)):
            if isinstance(output, Tensor) and output.is_floating_point():
                # Different weights make the gradients of all elements differ.
                weights = torch.linspace(1, 2, output.numel(), dtype=torch.float64)
                result = result + weights @ output.double().square().flatten()
        return result

    size = float(total(torch.zeros((), dtype=torch.float64))) or 1.0
    # Divided by its value at 0, so that tolerances are relative.
    return lambda distance: total(distance) / size


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    return (str(error).splitlines() or [type(error).__name__])[0]
