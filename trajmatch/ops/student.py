"""Gradient of a student's loss in its flat parameters, and the derivative of that gradient."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from trajmatch import reference
from trajmatch._extension import _C
from trajmatch.networks.engine import batch_norm_channels, engine_description
from trajmatch.networks.running_statistics import update_running_statistics
from trajmatch.ops.arguments import ArrayLike, Expect
from trajmatch.ops.errors import public_operator
from trajmatch.ops.registration import operators, register
from trajmatch.ops.replay import twice_differentiable
from trajmatch.reference import GradientJvp, Loss

#: Named losses; the engine has all of them.
LOSSES = ("cross_entropy", "sum_logits", "mse")


def engine_loss(loss: Loss, soft_labels: str, labels: Tensor) -> int | None:
    """Return a loss as C++ ``StudentLoss`` (soft_cross_entropy.h); None for a function."""
    if not isinstance(loss, str):
        return None
    soft = loss == "cross_entropy" and labels.is_floating_point()
    return 3 if soft and soft_labels == "probabilities" else LOSSES.index(loss)


class Point(NamedTuple):
    """Parameters ``theta [P]`` and batch at which a loss is differentiated.

    Images are ``[B, C, H, W]``, on autograd ``[B, ...]``; labels are class indices ``[B]``, soft
    labels ``[B, K]`` or targets ``[B, ...]``, and unused by ``"sum_logits"``.
    """

    theta: Tensor
    images: Tensor
    labels: Tensor


class Student(Protocol):
    """Network with a loss, on the engine or on autograd."""

    def gradient(self, at: Point) -> tuple[Tensor, Tensor]:
        """Return the loss ``[]`` of a batch and its gradient ``[P]``."""

    def jvp(self, at: Point, tangent: Tensor) -> tuple[Tensor | None, GradientJvp]:
        """Return the recomputed gradient or None, and the gradients' derivatives, detached."""


class EngineStudent:
    """Student on the engine, for an engine description ``network`` and an :func:`engine_loss`.

    ``scale`` multiplies the loss. Each gradient updates the running statistics of ``counts_in``.
    """

    def __init__(
        self,
        network: list[int],
        scale: float = 1.0,
        loss: int = 0,
        counts_in: nn.Module | None = None,
    ) -> None:
        self._settings, self._counts_in = (network, loss, scale), counts_in

    def gradient(self, at: Point) -> tuple[Tensor, Tensor]:
        """Return the loss and its gradient; both are differentiable once more."""
        value, grad, _, _, statistics = operators.student_gradient(*at, *self._settings, False)
        if self._counts_in is not None and statistics.shape[1] > 0:
            update_running_statistics(self._counts_in, statistics.detach())
        return value, grad

    def image_gradient(self, at: Point) -> Tensor:
        """Return the gradient with respect to the images, detached."""
        with torch.no_grad():
            found: Tensor = operators.student_gradient(*at, *self._settings, True)[2]
        return found

    def jvp(
        self, at: Point, tangent: Tensor | None, image_tangent: Tensor | None = None
    ) -> tuple[None, GradientJvp]:
        """Return the derivatives of the gradients; the gradient is not recomputed."""
        with torch.no_grad():
            found = operators.student_gradient_jvp(
                *at, tangent, image_tangent, None, *self._settings
            )
        soft = _soft(at.labels, self._settings[1])
        return None, GradientJvp._make(found if soft else (*found[:3], None))


class AutogradStudent:
    """Student that runs any module on PyTorch's autograd.

    ``scale`` multiplies the parameters' gradient and its derivatives, not the returned loss. Other
    arguments are as for :func:`gradient`.
    """

    def __init__(
        self,
        model: nn.Module,
        scale: float = 1.0,
        loss: Loss = LOSSES[0],
        update_buffers: bool = False,
        soft_labels: str = "logits",
    ) -> None:
        self.model, self._scale, self._examined = model, scale, False
        self._settings = (loss, update_buffers, soft_labels)

    def gradient(self, at: Point) -> tuple[Tensor, Tensor]:
        """Return the loss and its gradient, in the graph only if an input requires gradients."""
        if torch.is_grad_enabled() and any(each.requires_grad for each in at):
            with twice_differentiable():
                value, grad = reference.gradient(self.model, *at, *self._settings)
        else:
            theta = at.theta.detach().requires_grad_()
            value, grad = self._differentiated(theta, at._replace(theta=theta))
        return value, self._scale * grad

    def image_gradient(self, at: Point) -> Tensor:
        """Return the gradient with respect to the images, detached."""
        images = at.images.detach().requires_grad_()
        return self._differentiated(images, at._replace(theta=at.theta.detach(), images=images))[1]

    def _differentiated(self, leaf: Tensor, at: Point) -> tuple[Tensor, Tensor]:
        """Return the loss and its gradient in a leaf, without the graph of a second derivative."""
        with torch.enable_grad():
            value = reference.loss_value(self.model, *at, *self._settings)
            (grad,) = torch.autograd.grad(value, leaf)
        return value.detach(), grad

    def jvp(
        self, at: Point, tangent: Tensor | None, image_tangent: Tensor | None = None
    ) -> tuple[Tensor, GradientJvp]:
        """Return the recomputed gradient and the derivatives of the gradients."""
        loss, _, soft_labels = self._settings
        directions = (None if tangent is None else self._scale * tangent, image_tangent)
        with twice_differentiable():
            grad, found = reference.gradient_and_jvp(
                self.model, *at, *directions, loss, soft_labels, not self._examined
            )
        self._examined = True
        return self._scale * grad, found


def engine_for(model: nn.Module) -> str:
    """Return ``"engine"`` (C++ and CUDA) or ``"autograd"`` (PyTorch), the path that runs a model.

    The engine runs the networks of :mod:`trajmatch.networks`, also with other layers of the same
    types. All other modules, including subclasses, run eagerly on autograd, as do networks with
    hooks, shared or frozen parameters, or batch norm in evaluation mode. Autograd is equally exact
    and keeps one step's graph at a time. A model that is no module raises TypeError.
    """
    model = Expect("engine_for").module(model)
    return "autograd" if engine_description(model) is None else "engine"


def runs_by_images(model: nn.Module) -> bool:
    """Return True if the CPU engine takes a few images at a time through the whole network."""
    description = engine_description(model)
    return description is not None and _C.runs_by_images(description)


@public_operator
def gradient(
    model: nn.Module,
    theta: Tensor,
    images: Tensor,
    labels: ArrayLike | None,
    loss: Loss = "cross_entropy",
    precise: bool = False,
    update_buffers: bool = False,
    soft_labels: str = "logits",
) -> tuple[Tensor, Tensor]:
    """Return the loss of a batch and its gradient in the flat parameters.

    Args:
        model: The network, used in its current mode (training or evaluation). Its own parameters
            are neither used nor changed; its buffers change only with ``update_buffers``.
        theta: Parameters in the order of ``model.parameters()``. ``[P]``, float32 or float64.
        images: ``[B, C, H, W]``, dtype and device of ``theta``. Modules on autograd take inputs
            ``[B, ...]``, and tokens (int64 or int32), which have no gradient.
        labels: A tensor, array or list; None for ``"sum_logits"``. Class indices ``[B]`` (int64) or
            soft labels ``[B, K]`` for ``"cross_entropy"``; targets of the shape of the outputs for
            ``"mse"``; any dtype and shape ``[B, ...]`` for a function.
        loss: ``"cross_entropy"`` (mean over the batch), ``"mse"`` (mean over all elements of the
            outputs), ``"sum_logits"`` (sum of all logits; AST's gradient penalty uses its
            derivative), or a function of (outputs, labels). A function must return a scalar ``[]``,
            the mean over the batch, twice differentiable in both; other tensors that it reads are
            constants. With a function the engine's networks run on autograd.
        precise: True for Winograd F(2x2) instead of F(4x4) on the CPU engine in float32: more
            accurate and slower (``docs/performance.md``).
        update_buffers: True to update the model's own buffers (batch norm's running statistics), as
            a training step does.
        soft_labels: Meaning of floating labels for ``"cross_entropy"``: ``"logits"`` (the softmax
            is taken) or ``"probabilities"`` (used as they are; they need not sum to 1).

    Returns:
        The loss ``[]`` and the gradient ``[P]``. On the engine both are differentiable once more in
        ``theta``, ``images`` and floating labels, by :func:`gradient_jvp`; on autograd as often as
        the module is.

    Raises:
        ValueError: A shape, device, label or choice does not fit the model.
        TypeError: A dtype is not supported.
    """
    student, at = _checked(
        "gradient", model, theta, images, labels, loss, precise, soft_labels, update_buffers
    )
    return student.gradient(at)


@public_operator
def gradient_jvp(
    model: nn.Module,
    theta: Tensor,
    images: Tensor,
    labels: ArrayLike | None,
    tangent: Tensor | None = None,
    image_tangent: Tensor | None = None,
    loss: Loss = "cross_entropy",
    precise: bool = False,
    soft_labels: str = "logits",
) -> GradientJvp:
    """Return the derivative of a batch's loss and gradients along a direction.

    With ``tangent = q`` alone, ``grad_theta`` is the Hessian-vector product ``H q``, and the others
    are mixed second derivatives, as the adjoint of an unrolled step needs them. With
    ``image_tangent`` alone and ``loss="sum_logits"``, ``grad_theta`` is the gradient of AST's
    penalty on input gradients.

    ``tangent`` ``[P]`` and ``image_tangent`` (in the shape of ``images``) are the direction; None
    is zero. Other arguments and errors are as for :func:`gradient`. The model is not changed.

    Returns:
        A named tuple, not differentiable. ``directional`` ``[]`` is the derivative of the loss
        (``<grad, tangent>`` for a parameter tangent). ``grad_theta`` ``[P]``, ``grad_images`` (None
        for tokens) and ``grad_labels`` (None unless labels are floating) are the derivatives of the
        gradients.

    Raises:
        NotImplementedError: The model is not twice differentiable.
    """
    op = "gradient_jvp"
    student, at = _checked(op, model, theta, images, labels, loss, precise, soft_labels)
    differentiable = image_tangent is None or images.is_floating_point()
    Expect(op).that(differentiable, "image_tangent", "be None for tokens", "a tensor")
    return student.jvp(at, tangent, image_tangent)[1]


@public_operator
def image_gradient(
    model: nn.Module,
    theta: Tensor,
    images: Tensor,
    labels: ArrayLike | None,
    loss: Loss = "cross_entropy",
    precise: bool = False,
    soft_labels: str = "logits",
) -> Tensor:
    """Return the gradient of a batch's loss with respect to the images.

    Arguments and errors are as for :func:`gradient`, but tokens raise TypeError. The model is not
    changed.

    Returns:
        The gradient, in the shape of ``images``. It is not differentiable; use
        :func:`gradient_jvp` for its derivatives.
    """
    op = "image_gradient"
    student, at = _checked(op, model, theta, images, labels, loss, precise, soft_labels)
    Expect(op).floating("images", images)
    return student.image_gradient(at)


def release_workspace() -> None:
    """Free the memory that the CPU engine keeps for its next call in this thread.

    The buffers of activations live as long as the thread, so that repeated calls allocate nothing;
    they fit the largest batch and network so far. On CUDA nothing is kept after a call.
    """
    _C.release_workspace()


def _checked(
    op: str,
    model: nn.Module,
    theta: Tensor,
    images: Tensor,
    labels: ArrayLike | None,
    loss: Loss,
    precise: bool,
    soft_labels: str,
    update_buffers: bool = False,
) -> tuple[EngineStudent | AutogradStudent, Point]:
    """Return an operator's student and the point of differentiation, after all checks."""
    expect = Expect(op)
    model = expect.model(model)
    network = engine_description(model, precise)
    expect.theta("theta", theta, model)
    expect.images(images, theta, "theta", network is not None)
    expect.loss(loss, LOSSES, soft_labels)
    if labels is None:
        expect.that(loss == "sum_logits", "labels", f"be given for loss={loss!r}", None)
        labels = torch.empty(0, dtype=torch.int64, device=images.device)
    else:
        labels = expect.labels(labels, images, theta, loss, soft_labels)
    at = Point(theta, images, labels)
    number = engine_loss(loss, soft_labels, labels)
    if network is not None and number is not None:
        return EngineStudent(network, 1.0, number, model if update_buffers else None), at
    return AutogradStudent(model, 1.0, loss, update_buffers, soft_labels), at


def _soft(labels: Tensor, loss: int) -> bool:
    return labels.is_floating_point() and loss != LOSSES.index("sum_logits")


def _fake_jvp(given: Any) -> tuple[Tensor, ...]:
    shapes = (
        (),
        given.theta.shape,
        given.images.shape,
        given.labels.shape if _soft(given.labels, given.loss) else (0,),
    )
    return tuple(given.theta.new_empty(shape) for shape in shapes)


def _fake_gradient(given: Any) -> tuple[Tensor, ...]:
    value, grad, *inputs = _fake_jvp(given)
    if not given.input_gradients:
        inputs = [value.new_empty((0,)) for _ in inputs]
    return value, grad, *inputs, value.new_empty((3, batch_norm_channels(given.network)))


def _backward(
    saved: Any, c_loss: Tensor | None, *above: Tensor | None
) -> tuple[Tensor | None, ...]:
    # The three gradients are the gradient of one scalar, so their Jacobian is symmetric and its
    # adjoint is its tangent; the loss adds c_loss times the gradients themselves.
    c_theta, c_images, c_labels, _ = above
    problem = (saved.theta, saved.images, saved.labels)
    settings = (saved.network, saved.loss, saved.scale)
    totals: list[Tensor | None] = [None, None, None]
    if not saved.input_gradients:
        c_images = c_labels = None
    elif not _soft(saved.labels, saved.loss):
        c_labels = None
    if any(each is not None for each in (c_theta, c_images, c_labels)):
        _, *totals = operators.student_gradient_jvp(
            *problem, c_theta, c_images, c_labels, *settings
        )
    if c_loss is not None:
        _, *grads, _ = operators.student_gradient(*problem, *settings, True)
        totals = [
            c_loss * grad if total is None else total + c_loss * grad
            for total, grad in zip(totals, grads, strict=True)
        ]
    return tuple(totals)


register(
    "student_logits",
    lambda given: given.theta.new_empty((len(given.images), given.network[1])),
    instead="call the module, or trajmatch.ops.gradient",
)
register(
    "student_gradient",
    _fake_gradient,
    _backward,
    save="theta images labels",
    outputs="value grad grad_images grad_labels statistics",
    constant="statistics",
    materialize=False,
)
register(
    "student_gradient_jvp",
    _fake_jvp,
    instead="trajmatch.reference.gradient has derivatives of any order",
)
