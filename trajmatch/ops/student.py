"""Gradient of a student's loss with respect to flat parameters, and its directional derivative."""

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from trajmatch import reference
from trajmatch._extension import _C
from trajmatch.networks.engine import batch_norm_channels, engine_description
from trajmatch.ops.arguments import ArrayLike, Expect
from trajmatch.ops.errors import public_operator
from trajmatch.ops.registration import by_reference, operators, register
from trajmatch.ops.replay import twice_differentiable
from trajmatch.reference import GradientJvp, Loss

#: Named losses, in the order of the engine's numbers; the engine has all of them.
LOSSES = ("cross_entropy", "sum_logits", "mse")


def engine_loss(loss: Loss, soft_labels: str, labels: Tensor) -> int | None:
    """Return the engine's number for a loss; None for a function, which runs on autograd."""
    if not isinstance(loss, str):
        return None
    # The numbers of StudentLoss in csrc/core/soft_cross_entropy.h.
    soft = loss == "cross_entropy" and labels.is_floating_point()
    return 3 if soft and soft_labels == "probabilities" else LOSSES.index(loss)


class Point(NamedTuple):
    """Parameters and batch at which a loss is differentiated."""

    #: ``[P]``
    theta: Tensor
    #: ``[B, C, H, W]``, or ``[B, ...]`` on autograd
    images: Tensor
    #: Class indices ``[B]``, soft labels ``[B, classes]`` or targets ``[B, ...]``
    labels: Tensor


class Student(Protocol):
    """Network and loss, on the engine or on autograd.

    On the engine, a :class:`Point` may be that of ``K`` students: parameters ``[K, P]``, images
    ``[K, B, C, H, W]`` and labels ``[K, B, ...]``. All results then begin with ``K``.
    """

    def gradient(self, at: Point) -> tuple[Tensor, Tensor]:
        """Return the loss ``[]`` of a batch and its gradient ``[P]``."""

    def jvp(self, at: Point, tangent: Tensor) -> tuple[Tensor | None, GradientJvp]:
        """Return the recomputed gradient or None, and the derivatives along ``tangent``."""


class EngineStudent:
    """Student on the engine; ``loss`` is a result of :func:`engine_loss`, ``scale`` its factor."""

    def __init__(
        self, network: list[int], scale: float, loss: int, counts_in: nn.Module | None = None
    ) -> None:
        # Each gradient updates the running statistics of batch norms in the module `counts_in`.
        self._settings, self._counts_in = (network, loss, scale), counts_in

    def gradient(self, at: Point) -> tuple[Tensor, Tensor]:
        """Return the loss and its gradient; both are differentiable once more."""
        value, grad, _, _, statistics = operators.student_gradient(*at, *self._settings, False)
        if self._counts_in is not None and statistics.shape[1] > 0:
            update_running_statistics(self._counts_in, statistics.detach())
        return value, grad

    def image_gradient(self, at: Point) -> Tensor:
        """Return the gradient with respect to the images, detached."""
        # The last argument asks for the gradients of the inputs.
        with torch.no_grad():
            found: Tensor = operators.student_gradient(*at, *self._settings, True)[2]
        return found

    def jvp(
        self, at: Point, tangent: Tensor | None, image_tangent: Tensor | None = None
    ) -> tuple[None, GradientJvp]:
        """Return None (the gradient is not recomputed), and the derivatives along the tangents."""
        with torch.no_grad():
            found = operators.student_gradient_jvp(
                *at, tangent, image_tangent, None, *self._settings
            )
        soft = _soft(at.labels, self._settings[1])
        return None, GradientJvp._make(found if soft else (*found[:3], None))


def update_running_statistics(model: nn.Module, statistics: Tensor) -> None:
    """Update a model's running statistics with a batch, as its layers do in training mode.

    The rows of ``statistics [3, C]`` are mean, ``1 / sqrt(variance + eps)`` and number of values,
    for the channels of all batch norms in the order of ``modules()``.
    """
    layers = [each for each in model.modules() if isinstance(each, nn.BatchNorm2d)]
    parts = statistics.split([each.num_features for each in layers], dim=1)
    with torch.no_grad():
        for layer, (mean, rstd, count) in zip(layers, parts, strict=True):
            if layer.running_mean is None:
                continue
            assert layer.running_var is not None and layer.num_batches_tracked is not None
            layer.num_batches_tracked += 1
            # Without a momentum, PyTorch averages over all batches.
            weight: Tensor | float = (
                1.0 / layer.num_batches_tracked if layer.momentum is None else layer.momentum
            )
            # PyTorch's running variance is unbiased, the engine's variance is not.
            variance = (rstd**-2 - layer.eps) * count / (count - 1)
            for kept, found in ((layer.running_mean, mean), (layer.running_var, variance)):
                kept.copy_((1 - weight) * kept + weight * found)


class AutogradStudent:
    """Student that runs any module on autograd; arguments are as for :func:`gradient`.

    ``scale`` multiplies the gradient of the parameters and its derivatives, not the returned loss.
    """

    def __init__(
        self, model: nn.Module, scale: float, loss: Loss, update_buffers: bool, soft_labels: str
    ) -> None:
        # `_examined`: True once a graph of the model was found to be twice differentiable.
        self.model, self._scale, self._examined = model, scale, False
        self._settings = (loss, update_buffers, soft_labels)

    def gradient(self, at: Point) -> tuple[Tensor, Tensor]:
        """Return the loss and its gradient, with a graph only if an input requires gradients."""
        # A graph that can be differentiated again needs more memory, so make one only if needed.
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
        """Return the loss and its gradient with respect to a leaf, without a graph."""
        with torch.enable_grad():
            value = reference.loss_value(self.model, *at, *self._settings)
            (grad,) = torch.autograd.grad(value, leaf)
        return value.detach(), grad

    def jvp(
        self, at: Point, tangent: Tensor | None, image_tangent: Tensor | None = None
    ) -> tuple[Tensor, GradientJvp]:
        """Return the recomputed gradient, and the derivatives along the tangents."""
        loss, _, soft_labels = self._settings
        # Derivatives are linear in the tangent, so scaling the tangent scales all of them.
        directions = (None if tangent is None else self._scale * tangent, image_tangent)
        with twice_differentiable():
            grad, found = reference.gradient_and_jvp(
                self.model, *at, *directions, loss, soft_labels, not self._examined
            )
        self._examined = True
        return self._scale * grad, found


class OneByOne:
    """``K`` students on autograd, run one after another."""

    def __init__(self, student: AutogradStudent) -> None:
        self._student = student

    def gradient(self, at: Point) -> tuple[Tensor, Tensor]:
        """Return the losses ``[K]`` and their gradients ``[K, P]``."""
        values, grads = zip(*map(self._student.gradient, _each(at)), strict=True)
        return torch.stack(values), torch.stack(grads)

    def image_gradient(self, at: Point) -> Tensor:
        """Return the gradients with respect to the images, detached."""
        return torch.stack([self._student.image_gradient(each) for each in _each(at)])

    def jvp(
        self, at: Point, tangent: Tensor | None, image_tangent: Tensor | None = None
    ) -> tuple[None, GradientJvp]:
        """Return None, and the derivatives along the tangents."""
        points = _each(at)
        along = [[None] * len(points) if d is None else [*d] for d in (tangent, image_tangent)]
        found = [self._student.jvp(*each)[1] for each in zip(points, *along, strict=True)]
        columns = zip(*found, strict=True)
        return None, GradientJvp._make(None if None in c else torch.stack(c) for c in columns)


def _each(at: Point) -> list[Point]:
    return [Point(*each) for each in zip(*at, strict=True)]


def engine_for(model: nn.Module) -> str:
    """Return ``"engine"`` if a model runs on the engine (C++ and CUDA), else ``"autograd"``.

    The engine runs the networks of :mod:`trajmatch.networks`. Their layers may be replaced by other
    layers, if the new types occur in these networks too. All other modules run on autograd,
    including subclasses and networks with hooks, shared or frozen parameters, or batch norm in
    evaluation mode. Autograd is equally exact. TypeError is raised unless ``model`` is a
    ``torch.nn.Module``.
    """
    model = Expect("engine_for").module(model)
    return "autograd" if engine_description(model) is None else "engine"


def runs_by_images(model: nn.Module) -> bool:
    """Return True if the CPU engine runs the whole network on a few images at a time."""
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
    """Return the loss of a batch and its gradient with respect to the flat parameters.

    Parameters ``[K, P]`` are those of ``K`` students, each with a batch of its own. Images and
    labels, which must be tensors, then begin with ``K``, and so do all results. On the engine the
    students share the launches of its CUDA kernels; convolutions of cuDNN run one by one.

    Args:
        model: The network, used in its current mode (training or evaluation). Its parameters are
            neither used nor changed; its buffers change only with ``update_buffers``.
        theta: Parameters in the order of ``model.parameters()``. ``[P]`` or ``[K, P]``, float32 or
            float64.
        images: ``[B, C, H, W]``, dtype and device of ``theta``. On autograd, also ``[B, ...]`` or
            tokens (int64 or int32), which have no gradient.
        labels: A tensor, array or list. Class indices ``[B]`` (int64) or soft labels
            ``[B, classes]`` for ``"cross_entropy"``; targets in the shape of the outputs for
            ``"mse"``; any dtype and shape ``[B, ...]`` for a function. None only for
            ``"sum_logits"``.
        loss: ``"cross_entropy"`` (mean over the batch), ``"mse"`` (mean over all elements),
            ``"sum_logits"`` (sum of all logits, for AST's gradient penalty), or a function of
            (outputs, labels). The function must return a scalar ``[]``, the mean over the batch,
            twice differentiable in both arguments; other tensors that it reads are constants. With
            a function, every network runs on autograd.
        precise: True for more accurate, slower convolutions on the CPU engine in float32: Winograd
            F(2x2) instead of F(4x4) (``docs/performance.md``).
        update_buffers: True to update the model's buffers (running statistics), as in training.
            Not for ``K`` students, because the model has the buffers of one.
        soft_labels: Meaning of floating labels for ``"cross_entropy"``: ``"logits"``, or
            ``"probabilities"``, which are used as they are and need not sum to 1.

    Returns:
        The loss ``[]`` and the gradient ``[P]``. On the engine both are differentiable once more in
        ``theta``, ``images`` and floating labels; on autograd as often as the module.

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
    """Return the derivatives of a batch's loss and gradients along a direction.

    The direction is ``tangent`` ``[P]`` for the parameters and ``image_tangent`` (in the shape of
    ``images``) for the images; None is zero. Other arguments and errors are as for
    :func:`gradient`. The model is not changed.

    With ``tangent = q`` alone, ``grad_theta`` is the Hessian-vector product ``H q``, and the other
    results are the mixed second derivatives that the adjoint of a student step needs. With
    ``image_tangent`` alone and ``loss="sum_logits"``, ``grad_theta`` is the gradient of AST's
    penalty on input gradients.

    Returns:
        A named tuple, not differentiable. ``directional`` ``[]`` is the derivative of the loss.
        ``grad_theta`` ``[P]``, ``grad_images`` (None for tokens) and ``grad_labels`` (None unless
        labels are floating) are the derivatives of the gradients.

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
    """Return the gradient of a batch's loss with respect to the images, in the images' shape.

    Arguments and errors are as for :func:`gradient`, but tokens raise TypeError. The model is not
    changed. The gradient is not differentiable; use :func:`gradient_jvp` for its derivatives.
    """
    op = "image_gradient"
    student, at = _checked(op, model, theta, images, labels, loss, precise, soft_labels)
    Expect(op).floating("images", images)
    return student.image_gradient(at)


def release_workspace() -> None:
    """Free the memory that the CPU engine keeps for later calls.

    This is the calling thread's workspace, which is as large as its largest call needed, and the
    memory of stored activations that are no longer used. On CUDA nothing is kept after a call.
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
) -> tuple[EngineStudent | AutogradStudent | OneByOne, Point]:
    """Check the arguments; return the student and the point at which to differentiate."""
    expect = Expect(op)
    if isinstance(theta, Tensor) and theta.dim() == 2:
        expect.that(not update_buffers, "update_buffers", "be False for [K, P]", True)
        return _checked_together(op, model, theta, images, labels, loss, precise, soft_labels)
    model = expect.model(model)
    network = engine_description(model, precise)
    expect.theta("theta", theta, model)
    expect.images(images, theta, "theta", network is not None)
    expect.loss(loss, LOSSES, soft_labels)
    # sum_logits has no labels, but the student takes a tensor.
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


def _checked_together(
    op: str, model: nn.Module, theta: Tensor, images: Tensor, labels: Any, *settings: Any
) -> tuple[EngineStudent | AutogradStudent | OneByOne, Point]:
    """Check the arguments of ``K`` students: sizes for all, everything else for the first one."""
    expect, count = Expect(op), len(theta)
    expect.that(count > 0, "theta", "have at least one row", list(theta.shape))
    for name, each in (("images", images), ("labels", labels)):
        if each is None:
            continue
        expect.is_tensor(name, each)
        fits = each.dim() > 1 and len(each) == count
        expect.that(fits, name, f"begin with {count}, the rows of theta", list(each.shape))
    own = None if labels is None else labels[0]
    student, at = _checked(op, model, theta[0], images[0], own, *settings)
    labels = at.labels.expand(count, *at.labels.shape) if labels is None else labels
    if isinstance(student, AutogradStudent):
        student = OneByOne(student)
    return student, Point(theta, images, labels)


# Floating labels have a gradient, except for sum_logits, which does not read labels.
def _soft(labels: Tensor, loss: int) -> bool:
    return labels.is_floating_point() and loss != LOSSES.index("sum_logits")


def _fake_jvp(given: Any) -> tuple[Tensor, ...]:
    labels = given.labels.shape if _soft(given.labels, given.loss) else (0,)
    shapes = (given.theta.shape[:-1], given.theta.shape, given.images.shape, labels)
    return tuple(given.theta.new_empty(shape) for shape in shapes)


def _fake_gradient(given: Any) -> tuple[Tensor, ...]:
    # The gradients have the shapes of their derivatives.
    value, grad, *inputs = _fake_jvp(given)
    if not given.input_gradients:
        inputs = [value.new_empty((0,)) for _ in inputs]
    statistics = (*value.shape, 3, batch_norm_channels(given.network))
    return value, grad, *inputs, value.new_empty(statistics)


def _scaled(factor: Tensor, grad: Tensor) -> Tensor:
    """Return a gradient times ``factor``: ``[]``, or ``[K]`` for gradients ``[K, ...]``."""
    # Class indices have an empty gradient.
    ones = (1,) * (grad.dim() - factor.dim())
    return grad if grad.numel() == 0 else factor.reshape(factor.shape + ones) * grad


def _backward(
    saved: Any, c_loss: Tensor | None, *above: Tensor | None
) -> tuple[Tensor | None, ...]:
    # The three gradients together (theta, images, labels) are the gradient of one scalar. So their
    # Jacobian is symmetric, and the vector-Jacobian product with (c_theta, c_images, c_labels) is
    # the derivative along this direction. The loss adds c_loss times the gradients.
    c_theta, c_images, c_labels, _ = above
    problem = (saved.theta, saved.images, saved.labels)
    settings = (saved.network, saved.loss, saved.scale)
    totals: list[Tensor | None] = [None, None, None]
    # Outputs that were empty have no gradient to pass on.
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
            _scaled(c_loss, grad) if total is None else total + _scaled(c_loss, grad)
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
register("student_gradient_jvp", _fake_jvp, instead=by_reference("gradient"))
