"""One student step of SGD with momentum on flat parameters, and its adjoint."""

from __future__ import annotations

from numbers import Real
from typing import Any

import torch
from torch import Tensor

from trajmatch import _extension  # noqa: F401  registers the operators
from trajmatch.ops.errors import public_operator


def as_scalar(value: Any, like: Tensor) -> Tensor:
    """A learning rate as a scalar tensor with dtype and device of ``like``."""
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
    """``b = momentum * buffer + grad`` and ``theta - lr * b``, in one pass (AST, heavy ball).

    Args:
        theta: Parameters. ``[P]``, float32 or float64.
        grad: Their gradient. ``[P]``, dtype and device of ``theta``.
        lr: Step size. A number, or ``[]`` with dtype and device of ``theta``.
        buffer: Momentum buffer of the step before. ``[P]``; None stands for zeros.
        momentum: Factor of the buffer.

    Returns:
        The new parameters and the new buffer, ``[P]`` each. Differentiable any number of times in
        ``theta``, ``grad``, ``lr`` and ``buffer``; the gradient is one pass
        (:func:`sgd_step_adjoint`).

    Raises:
        ValueError: Shapes or devices differ.
        TypeError: A dtype is neither float32 nor float64, or they differ.
    """
    return torch.ops.trajmatch.sgd_step(theta, grad, as_scalar(lr, theta), buffer, momentum)


@public_operator
def sgd_step_adjoint(
    grad_theta_out: Tensor,
    grad_buffer_out: Tensor | None,
    buffer_out: Tensor,
    lr: Tensor | float,
    momentum: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """The adjoint of :func:`sgd_step`, in one pass.

    Args:
        grad_theta_out: Gradient that arrives at the new parameters. ``[P]``.
        grad_buffer_out: Gradient that arrives at the new buffer. ``[P]``; None stands for zeros.
        buffer_out: The new buffer. ``[P]``.
        lr: Step size. A number, or ``[]``.
        momentum: Factor of the buffer.

    Returns:
        The gradients of ``grad`` ``[P]``, of ``buffer`` ``[P]`` and of ``lr`` ``[]``, the last an
        inner product summed in float64. That of ``theta`` is ``grad_theta_out`` itself.
        Differentiable any number of times.

    Raises:
        ValueError: Shapes or devices differ.
        TypeError: A dtype is neither float32 nor float64, or they differ.
    """
    return torch.ops.trajmatch.sgd_step_adjoint(
        grad_theta_out, grad_buffer_out, buffer_out, as_scalar(lr, grad_theta_out), momentum
    )


@torch.library.register_fake("trajmatch::sgd_step")
def _(
    theta: Tensor, grad: Tensor, lr: Tensor, buffer: Tensor | None, momentum: float
) -> tuple[Tensor, Tensor]:
    return theta.new_empty(theta.shape), theta.new_empty(theta.shape)


@torch.library.register_fake("trajmatch::sgd_step_adjoint")
def _(
    grad_theta_out: Tensor,
    grad_buffer_out: Tensor | None,
    buffer_out: Tensor,
    lr: Tensor,
    momentum: float,
) -> tuple[Tensor, Tensor, Tensor]:
    like = grad_theta_out
    return like.new_empty(like.shape), like.new_empty(like.shape), like.new_empty(())


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, _, lr, buffer, ctx.momentum = inputs
    ctx.has_buffer = buffer is not None
    ctx.save_for_backward(lr, output[1])


def _backward(ctx: Any, grad_theta: Tensor, grad_buffer: Tensor) -> tuple[Tensor | None, ...]:
    lr, buffer_out = ctx.saved_tensors
    grad_grad, grad_old_buffer, grad_lr = torch.ops.trajmatch.sgd_step_adjoint(
        grad_theta, grad_buffer, buffer_out, lr, ctx.momentum
    )
    return grad_theta, grad_grad, grad_lr, grad_old_buffer if ctx.has_buffer else None, None


def _setup_adjoint(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    grad_theta_out, grad_buffer_out, buffer_out, lr, ctx.momentum = inputs
    ctx.has_buffer = grad_buffer_out is not None
    ctx.save_for_backward(grad_theta_out, buffer_out, lr)


def _adjoint_backward(
    ctx: Any, v_grad: Tensor, v_buffer: Tensor, v_lr: Tensor
) -> tuple[Tensor | None, ...]:
    # The adjoint is bilinear: grad_grad = c - lr a, grad_buffer = momentum grad_grad,
    # grad_lr = -<a, b>, with a, c the gradients that arrive and b the new buffer.
    a, b, lr = ctx.saved_tensors
    v = v_grad + ctx.momentum * v_buffer
    return -lr * v - v_lr * b, v if ctx.has_buffer else None, -v_lr * a, -a.dot(v), None


torch.library.register_autograd("trajmatch::sgd_step", _backward, setup_context=_setup)
torch.library.register_autograd(
    "trajmatch::sgd_step_adjoint", _adjoint_backward, setup_context=_setup_adjoint
)
