"""Matching loss of a student.

It is the squared distance from the student to the expert, divided by the squared distance that the
expert moved.
"""

from typing import Any

import torch
from torch import Tensor

from trajmatch.ops.errors import public_operator
from trajmatch.ops.registration import operators, register


@public_operator
def param_distance(student: Tensor, target: Tensor, start: Tensor) -> Tensor:
    """Return ``|student - target|^2 / |start - target|^2``, the matching loss of MTT (section 3.2).

    Forward and backward take one pass over the vectors each. Sums are in float64.

    Args:
        student: Parameters after the student's steps. ``[P]``, float32 or float64.
        target: Expert parameters to reach; dtype, device and shape of ``student``.
        start: Expert parameters at the student's start; dtype, device and shape of ``student``.

    Returns:
        The loss. ``[]``, dtype of ``student``. Differentiable any number of times in all vectors.

    Raises:
        ValueError: Shapes or devices differ, or the vectors are empty.
        TypeError: A dtype is neither float32 nor float64, or dtypes differ.

    Example:
        >>> param_distance(torch.ones(3), torch.zeros(3), 2 * torch.ones(3))
        tensor(0.2500)
    """
    return operators.param_distance(student, target, start)[0]


def _fake(given: Any) -> tuple[Tensor, Tensor]:
    return given.student.new_empty(()), given.student.new_empty((2,), dtype=torch.float64)


def _backward(saved: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    return operators.param_distance_backward(
        grad_loss, saved.student, saved.target, saved.start, saved.sums
    )


def _fake_backward(given: Any) -> tuple[Tensor, ...]:
    return tuple(each.new_empty(each.shape) for each in (given.student, given.target, given.start))


def _backward_backward(
    saved: Any, v_student: Tensor, v_target: Tensor, v_start: Tensor
) -> tuple[Tensor, ...]:
    # These are the derivatives of <v, gradient> = 2 g / d (<p, u> - L <r, w>), where g = grad_loss,
    # u = student - target, w = start - target, d = |w|^2, L = |u|^2 / d, p = v_student - v_target
    # and r = v_start - v_target.
    u, w = saved.student - saved.target, saved.start - saved.target
    p, r = v_student - v_target, v_start - v_target
    d = w.dot(w)
    loss = u.dot(u) / d
    pu, rw = p.dot(u), r.dot(w)
    factor = 2 * saved.grad_loss / d
    from_u = factor * (p - (2 * rw / d) * u)
    from_w = factor * ((2 * (2 * loss * rw - pu) / d) * w - loss * r)
    # The target enters u and w with a minus, so its gradient is minus the sum of both.
    return 2 * (pu - loss * rw) / d, from_u, -(from_u + from_w), from_w


_SAVED = "student target start"

register(
    "param_distance", _fake, _backward, save=f"{_SAVED} sums", outputs="loss sums", constant="sums"
)
register("param_distance_backward", _fake_backward, _backward_backward, save=f"grad_loss {_SAVED}")
