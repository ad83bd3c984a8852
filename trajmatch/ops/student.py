"""The gradient of a student's loss in its flat parameters, and the derivative of that gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trajmatch import reference
from trajmatch._extension import _C
from trajmatch.networks.engine import engine_description
from trajmatch.ops._registration import forbid_autograd
from trajmatch.ops.arguments import ArrayLike, Expect
from trajmatch.ops.errors import public_operator
from trajmatch.ops.replay import twice_differentiable
from trajmatch.reference import GradientJvp

#: Losses, in the order of ``StudentLoss`` (``csrc/ops/student.h``).
LOSSES = ("cross_entropy", "sum_logits")


def engine_for(model: nn.Module) -> str:
    """Which path runs this model: ``"engine"`` (C++ and CUDA) or ``"autograd"`` (PyTorch).

    The engine knows :class:`trajmatch.networks.ConvNet`, ``AlexNet``, ``VGG11``, ``LeNet`` and
    ``MLP`` without batch norm. Every other module, subclasses of these among them, runs eagerly on
    autograd: exact as well, one step's graph at a time.
    """
    model = Expect("engine_for").module(model)
    return "autograd" if engine_description(model) is None else "engine"


@public_operator
def gradient(
    model: nn.Module,
    theta: Tensor,
    images: Tensor,
    labels: ArrayLike | None,
    loss: str = "cross_entropy",
    precise: bool = False,
    update_buffers: bool = False,
) -> tuple[Tensor, Tensor]:
    """Loss of a batch and its gradient in the flat parameters.

    Args:
        model: The network. Its own parameters are not used and not changed, its buffers only with
            ``update_buffers``. It runs in the mode (training or evaluation) that it is in.
        theta: Parameters in the order of ``model.parameters()``. ``[P]``, float32 or float64.
        images: ``[B, C, H, W]``, dtype and device of ``theta``.
        labels: Class indices ``[B]`` (int64) or logits ``[B, K]``, a tensor, array or list; None
            for ``"sum_logits"``.
        loss: ``"cross_entropy"`` (mean over the batch) or ``"sum_logits"`` (the sum of all logits
            of the batch, of which AST's gradient penalty takes the derivative).
        precise: On the CPU engine, in float32: Winograd F(2x2) in place of F(4x4), more
            accurate and slower (``docs/performance.md``).
        update_buffers: Whether this pass counts in the model's own buffers, the running statistics
            of batch norm, as a training step does. Networks on the engine have none.

    Returns:
        The loss ``[]`` and the gradient ``[P]``. Both are differentiable once more in ``theta``,
        ``images`` and logit labels (on the engine by :func:`gradient_jvp`); on autograd as often
        as the module is.

    Raises:
        ValueError: A shape, device, label or choice does not fit the model.
        TypeError: A dtype is not supported.
    """
    model, labels = _checked("gradient", model, theta, images, labels, loss)
    if engine_for(model) == "autograd":
        needed = torch.is_grad_enabled() and any(
            each is not None and each.requires_grad for each in (theta, images, labels)
        )
        if needed:
            with twice_differentiable():
                return reference.gradient(model, theta, images, labels, loss, update_buffers)
        return autograd_gradient(model, theta, images, labels, loss, update_buffers)
    value, grad, _, _ = torch.ops.trajmatch.student_gradient(
        theta,
        images,
        _labels(images, labels),
        _describe(model, precise),
        LOSSES.index(loss),
        1.0,
        False,
    )
    return value, grad


@public_operator
def gradient_jvp(
    model: nn.Module,
    theta: Tensor,
    images: Tensor,
    labels: ArrayLike | None,
    tangent: Tensor | None = None,
    image_tangent: Tensor | None = None,
    loss: str = "cross_entropy",
    precise: bool = False,
) -> GradientJvp:
    """Derivative of a batch's loss and gradients along a direction.

    With ``tangent = q`` alone, ``grad_theta`` is the Hessian-vector product ``H q`` and the others
    are mixed second derivatives: what one step of the adjoint of an unrolled loop needs. With
    ``image_tangent`` alone and ``loss="sum_logits"``, ``grad_theta`` is the gradient of AST's
    penalty on input gradients.

    Args:
        model: The network. Its own parameters are not used and not changed.
        theta: ``[P]``, float32 or float64.
        images: ``[B, C, H, W]``.
        labels: Class indices ``[B]`` or logits ``[B, K]``; None for ``"sum_logits"``.
        tangent: Direction of the parameters, ``[P]``; None: zero.
        image_tangent: Direction of the images, ``[B, C, H, W]``; None: zero.
        loss: ``"cross_entropy"`` or ``"sum_logits"``.
        precise: As for :func:`gradient`.

    Returns:
        A named tuple, not differentiable itself:
        ``directional`` ``[]``, the derivative of the loss, ``<grad, tangent>`` for a parameter
        tangent; ``grad_theta`` ``[P]``, ``grad_images`` ``[B, C, H, W]`` and ``grad_labels``
        ``[B, K]`` (None for class indices), the derivatives of the gradients in each.

    Raises:
        ValueError: A shape, device, label or choice does not fit the model.
        TypeError: A dtype is not supported.
        NotImplementedError: The model is not twice differentiable.
    """
    model, labels = _checked("gradient_jvp", model, theta, images, labels, loss)
    if engine_for(model) == "autograd":
        with twice_differentiable():
            return reference.gradient_and_jvp(
                model, theta, images, labels, tangent, image_tangent, loss, examine=True
            )[1]
    labels = _labels(images, labels)
    directional, grad_theta, grad_images, grad_labels = torch.ops.trajmatch.student_gradient_jvp(
        theta.detach(),
        images.detach(),
        labels.detach(),
        None if tangent is None else tangent.detach(),
        None if image_tangent is None else image_tangent.detach(),
        None,
        _describe(model, precise),
        LOSSES.index(loss),
        1.0,
    )
    soft = loss == "cross_entropy" and labels.is_floating_point()
    return GradientJvp(directional, grad_theta, grad_images, grad_labels if soft else None)


def autograd_gradient(
    model: nn.Module,
    theta: Tensor,
    images: Tensor,
    labels: Tensor | None,
    loss: str,
    update_buffers: bool = False,
) -> tuple[Tensor, Tensor]:
    """Loss and gradient of any module, detached: without the graph of a second derivative."""
    with torch.enable_grad():
        theta = theta.detach().requires_grad_()
        value = reference.loss_value(model, theta, images, labels, loss, update_buffers)
        (grad,) = torch.autograd.grad(value, theta)
    return value.detach(), grad


@public_operator
def image_gradient(
    model: nn.Module,
    theta: Tensor,
    images: Tensor,
    labels: ArrayLike | None,
    loss: str = "cross_entropy",
    precise: bool = False,
) -> Tensor:
    """Gradient of a batch's loss in the images.

    Args:
        model: The network. Its own parameters and buffers are not used up or changed.
        theta: ``[P]``, float32 or float64.
        images: ``[B, C, H, W]``.
        labels: Class indices ``[B]`` or logits ``[B, K]``; None for ``"sum_logits"``.
        loss: ``"cross_entropy"`` or ``"sum_logits"``, as for :func:`gradient`.
        precise: As for :func:`gradient`.

    Returns:
        ``[B, C, H, W]``, not differentiable itself; :func:`gradient_jvp` has its derivatives.

    Raises:
        ValueError: A shape, device, label or choice does not fit the model.
        TypeError: A dtype is not supported.
    """
    model, labels = _checked("image_gradient", model, theta, images, labels, loss)
    if engine_for(model) == "autograd":
        with torch.enable_grad():
            images = images.detach().requires_grad_()
            value = reference.loss_value(model, theta.detach(), images, labels, loss)
            (grad,) = torch.autograd.grad(value, images)
        return grad
    grads = torch.ops.trajmatch.student_gradient(
        theta.detach(),
        images.detach(),
        _labels(images, labels).detach(),
        _describe(model, precise),
        LOSSES.index(loss),
        1.0,
        True,
    )
    found: Tensor = grads[2]
    return found


def release_workspace() -> None:
    """Give back the memory that the engine keeps for its next call on the CPU.

    The engine's buffers for activations live as long as the thread that called it, so that a loop
    over calls allocates nothing; they are as large as the largest batch and network so far needed.
    Concerns the calling thread only. On CUDA nothing is kept beyond a call.
    """
    _C.release_workspace()


def check_loss(op: str, loss: str, labels: ArrayLike | None) -> None:
    """Raise ValueError for an unknown loss, or for labels that it needs and does not have."""
    if loss not in LOSSES:
        raise ValueError(
            f"trajmatch::{op}: expected loss to be one of {', '.join(LOSSES)}, but got {loss!r}"
        )
    if labels is None and loss == "cross_entropy":
        raise ValueError(
            f"trajmatch::{op}: expected labels to be given for loss='cross_entropy', but got None"
        )


def _checked(
    op: str,
    model: nn.Module,
    theta: Tensor,
    images: Tensor,
    labels: ArrayLike | None,
    loss: str,
) -> tuple[nn.Module, Tensor | None]:
    """The module to call and the labels as a tensor, after a check of all arguments."""
    expect = Expect(op)
    model = expect.model(model)
    expect.theta("theta", theta, model)
    expect.images(images, theta, "theta", engine_for(model) == "engine")
    check_loss(op, loss, labels)
    return model, None if labels is None else expect.labels(labels, images)


def _labels(images: Tensor, labels: Tensor | None) -> Tensor:
    # The engine's operators take a tensor always; the sum of logits does not look at it.
    if labels is not None:
        return labels
    return torch.empty(0, dtype=torch.int64, device=images.device)


def _describe(model: nn.Module, precise: bool) -> list[int]:
    network = engine_description(model, precise)
    assert network is not None
    return network


def _soft(labels: Tensor, loss: int) -> bool:
    return labels.is_floating_point() and LOSSES[loss] == "cross_entropy"


@torch.library.register_fake("trajmatch::student_gradient")
def _(
    theta: Tensor,
    images: Tensor,
    labels: Tensor,
    network: list[int],
    loss: int,
    scale: float,
    input_gradients: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        theta.new_empty(()),
        theta.new_empty(theta.shape),
        theta.new_empty(images.shape if input_gradients else (0,)),
        theta.new_empty(labels.shape if input_gradients and _soft(labels, loss) else (0,)),
    )


@torch.library.register_fake("trajmatch::student_gradient_jvp")
def _(
    theta: Tensor,
    images: Tensor,
    labels: Tensor,
    tangent: Tensor | None,
    image_tangent: Tensor | None,
    label_tangent: Tensor | None,
    network: list[int],
    loss: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        theta.new_empty(()),
        theta.new_empty(theta.shape),
        theta.new_empty(images.shape),
        theta.new_empty(labels.shape if _soft(labels, loss) else (0,)),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    theta, images, labels, ctx.network, ctx.loss, ctx.scale, ctx.input_gradients = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(theta, images, labels)


def _backward(
    ctx: Any,
    c_loss: Tensor | None,
    c_theta: Tensor | None,
    c_images: Tensor | None,
    c_labels: Tensor | None,
) -> tuple[Tensor | None, ...]:
    # The three gradients are the gradient of one scalar, so their Jacobian is symmetric and its
    # adjoint is its tangent; the loss adds c_loss times the gradients themselves.
    theta, images, labels = ctx.saved_tensors
    soft = _soft(labels, ctx.loss)
    problem = (theta, images, labels)
    choices = (ctx.network, ctx.loss, ctx.scale)
    totals: list[Tensor | None] = [None, None, None]
    if not ctx.input_gradients:
        c_images = c_labels = None
    elif not soft:
        c_labels = None
    if any(each is not None for each in (c_theta, c_images, c_labels)):
        _, *totals = torch.ops.trajmatch.student_gradient_jvp(
            *problem, c_theta, c_images, c_labels, *choices
        )
    if c_loss is not None:
        _, *grads = torch.ops.trajmatch.student_gradient(*problem, *choices, True)
        totals = [
            c_loss * grad if total is None else total + c_loss * grad
            for total, grad in zip(totals, grads, strict=True)
        ]
    return totals[0], totals[1], totals[2] if soft else None, None, None, None, None


torch.library.register_autograd("trajmatch::student_gradient", _backward, setup_context=_setup)
forbid_autograd("student_gradient_jvp", "trajmatch.reference.gradient has derivatives of any order")
