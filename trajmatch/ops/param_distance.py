"""The matching loss: squared distance of parameters, relative to what the expert travelled."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trajmatch import _extension  # noqa: F401  registers the operators
from trajmatch.ops.errors import public_operator


@public_operator
def param_distance(student: Tensor, target: Tensor, start: Tensor) -> Tensor:
    """``|student - target|^2 / |start - target|^2``, the matching loss of MTT (section 3.2).

    One pass over the three vectors, sums in float64; one pass for the gradient.

    Args:
        student: Parameters after the student's steps. ``[P]``, float32 or float64.
        target: Expert parameters to reach, dtype, device and shape of ``student``.
        start: Expert parameters the student began from, likewise.

    Returns:
        The loss. ``[]``, dtype of ``student``. Differentiable any number of times in all three.

    Raises:
        ValueError: Shapes or devices differ, or the vectors are empty.
        TypeError: A dtype is neither float32 nor float64, or they differ.

    Example:
        >>> param_distance(torch.ones(3), torch.zeros(3), 2 * torch.ones(3))
        tensor(0.2500)
    """
    return torch.ops.trajmatch.param_distance(student, target, start)[0]


@torch.library.register_fake("trajmatch::param_distance")
def _(student: Tensor, target: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    return student.new_empty(()), student.new_empty((2,), dtype=torch.float64)


@torch.library.register_fake("trajmatch::param_distance_backward")
def _(
    grad_loss: Tensor, student: Tensor, target: Tensor, start: Tensor, sums: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        student.new_empty(student.shape),
        student.new_empty(student.shape),
        student.new_empty(student.shape),
    )


def _setup(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs, output[1])


def _backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    student, target, start, sums = ctx.saved_tensors
    return torch.ops.trajmatch.param_distance_backward(grad_loss, student, target, start, sums)


def _setup_backward(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:4])


def _backward_backward(
    ctx: Any, v_student: Tensor, v_target: Tensor, v_start: Tensor
) -> tuple[Tensor | None, ...]:
    # With u = student - target, w = start - target, d = |w|^2, L = |u|^2 / d, p = v_student -
    # v_target and r = v_start - v_target, <v, gradient> = 2 g / d (<p, u> - L <r, w>).
    grad_loss, student, target, start = ctx.saved_tensors
    u, w = student - target, start - target
    p, r = v_student - v_target, v_start - v_target
    d = w.dot(w)
    loss = u.dot(u) / d
    pu, rw = p.dot(u), r.dot(w)
    factor = 2 * grad_loss / d
    from_u = factor * (p - (2 * rw / d) * u)
    from_w = factor * ((2 * (2 * loss * rw - pu) / d) * w - loss * r)
    return 2 * (pu - loss * rw) / d, from_u, -(from_u + from_w), from_w, None


torch.library.register_autograd("trajmatch::param_distance", _backward, setup_context=_setup)
torch.library.register_autograd(
    "trajmatch::param_distance_backward", _backward_backward, setup_context=_setup_backward
)
