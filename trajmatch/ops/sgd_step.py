"""One SGD step with momentum on flat parameters, and its adjoint."""

from numbers import Real
from typing import Any

import torch
from torch import Tensor

from trajmatch.ops.errors import public_operator
from trajmatch.ops.registration import operators, register


def as_scalar(value: Any, like: Tensor) -> Tensor:
    """Return a step size as a tensor; a number takes its dtype and device from ``like``."""
    if isinstance(value, Tensor):
        return value
    if not isinstance(value, Real):
        raise TypeError(
            "trajmatch: expected lr to be a number or a tensor of shape [], "
            f"but got {type(value).__name__}"
        )
    return torch.full((), float(value), dtype=like.dtype, device=like.device)


@public_operator
def sgd_step(
    theta: Tensor,
    grad: Tensor,
    lr: Tensor | float,
    buffer: Tensor | None = None,
    momentum: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Return ``theta - lr * b`` and ``b = momentum * buffer + grad``: a heavy-ball step (AST).

    Args:
        theta: Parameters. ``[P]``, float32 or float64.
        grad: Gradient with respect to ``theta``. ``[P]``, dtype and device of ``theta``.
        lr: Step size. A number, or ``[]`` with dtype and device of ``theta``.
        buffer: Momentum buffer of the previous step. ``[P]``; None: zeros.
        momentum: Factor of the buffer.

    Returns:
        The new parameters and the new buffer, ``[P]`` each. Differentiable any number of times in
        all tensors. Forward and backward (:func:`sgd_step_adjoint`) take one pass each.

    Raises:
        ValueError: Shapes or devices differ.
        TypeError: A dtype is neither float32 nor float64, or dtypes differ.
    """
    return operators.sgd_step(theta, grad, as_scalar(lr, theta), buffer, momentum)


@public_operator
def sgd_step_adjoint(
    grad_theta_out: Tensor,
    grad_buffer_out: Tensor | None,
    buffer_out: Tensor,
    lr: Tensor | float,
    momentum: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the adjoint of :func:`sgd_step`, computed in one pass; both raise the same errors.

    Args:
        grad_theta_out: Gradient of the new parameters. ``[P]``.
        grad_buffer_out: Gradient of the new buffer. ``[P]``; None: zeros.
        buffer_out: The new buffer. ``[P]``.
        lr: Step size. A number, or ``[]``.
        momentum: Factor of the buffer.

    Returns:
        The gradients of ``grad`` ``[P]``, ``buffer`` ``[P]`` and ``lr`` ``[]`` (summed in float64),
        differentiable any number of times. The gradient of ``theta`` is ``grad_theta_out``.
    """
    return operators.sgd_step_adjoint(
        grad_theta_out, grad_buffer_out, buffer_out, as_scalar(lr, grad_theta_out), momentum
    )


def _fake(given: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(given.theta), torch.empty_like(given.theta)


def _backward(saved: Any, grad_theta: Tensor, grad_buffer: Tensor) -> tuple[Tensor, ...]:
    grad_grad, grad_old_buffer, grad_lr = operators.sgd_step_adjoint(
        grad_theta, grad_buffer, saved.buffer_out, saved.lr, saved.momentum
    )
    # theta enters theta_out with the factor 1, so both have the same gradient.
    return grad_theta, grad_grad, grad_lr, grad_old_buffer


def _fake_adjoint(given: Any) -> tuple[Tensor, Tensor, Tensor]:
    like = given.grad_theta_out
    return torch.empty_like(like), torch.empty_like(like), like.new_empty(())


def _adjoint_backward(
    saved: Any, v_grad: Tensor, v_buffer: Tensor, v_lr: Tensor
) -> tuple[Tensor, ...]:
    # The adjoint is bilinear: grad_grad = c - lr a, grad_buffer = momentum grad_grad,
    # grad_lr = -<a, b>, with a, c the gradients of the outputs and b the new buffer.
    a, b, lr = saved.grad_theta_out, saved.buffer_out, saved.lr
    v = v_grad + saved.momentum * v_buffer
    return -lr * v - v_lr * b, v, -v_lr * a, -a.dot(v)


register("sgd_step", _fake, _backward, save="lr buffer_out", outputs="theta_out buffer_out")
register("sgd_step_adjoint", _fake_adjoint, _adjoint_backward, save="grad_theta_out buffer_out lr")
