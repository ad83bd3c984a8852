"""Operators of :mod:`trajmatch.ops` in plain PyTorch: slow, exact and easy to read.

They are the ground truth of the tests and the baseline of the benchmarks. Arguments and results are
documented in ``trajmatch.ops``. Results are differentiable as often as PyTorch's operations are.
``unroll`` keeps the graph of all steps, so its memory grows with the number of steps.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trajmatch.block import LEAKY_SLOPE, NORM_EPS, NORMS
from trajmatch.networks.flat import call_flat, decayed, trainable

#: Name of a loss, or a function of a batch's outputs and labels that returns a scalar.
Loss = str | Callable[[Tensor, Tensor], Tensor]


class GradientJvp(NamedTuple):
    """Directional derivatives of loss and gradients; see :func:`trajmatch.ops.gradient_jvp`."""

    directional: Tensor
    grad_theta: Tensor
    grad_images: Tensor | None
    grad_labels: Tensor | None


class OptimiserState(NamedTuple):
    """State of a student's optimiser, which :func:`trajmatch.ops.unroll` takes and returns.

    Attributes:
        tensors: ``[S, P]``: SGD's momentum buffer (``S`` is 1, or 0 without momentum), or Adam's
            averages of the gradient and of its square (``S`` is 2).
        steps: Number of steps done, for Adam's bias correction.
    """

    tensors: Tensor
    steps: int


def param_distance(student: Tensor, target: Tensor, start: Tensor) -> Tensor:
    """Return ``|student - target|^2 / |start - target|^2`` for vectors ``[P]``."""
    return (student - target).square().sum() / (start - target).square().sum()


def sgd_step(
    theta: Tensor,
    grad: Tensor,
    lr: Tensor | float,
    buffer: Tensor | None = None,
    momentum: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Return ``theta - lr * b`` and ``b = momentum * buffer + grad``."""
    new_buffer = grad if buffer is None else momentum * buffer + grad
    return theta - lr * new_buffer, new_buffer


def step_size(lr: Tensor, step: int, sizes: Sequence[int], trained: Tensor | None) -> Tensor:
    """Return the step size of a step: ``[]``, or ``[P]`` if it differs between parameters.

    ``lr`` is ``[]``, ``[N]``, ``[1, T]`` or ``[N, T]``; ``sizes`` has the number of elements of
    each of the ``T`` parameter tensors. Where the mask ``trained [P]`` is 0, so is the step size.
    """
    # `min` makes the one row of [1, T] serve all steps.
    rate = lr if lr.dim() == 0 else lr[min(step, len(lr) - 1)]
    if rate.dim() > 0:
        rate = torch.cat([each.expand(size) for each, size in zip(rate, sizes, strict=True)])
    return rate if trained is None else rate * trained


def optimiser_step(
    numbers: Sequence[float],
    theta: Tensor,
    grad: Tensor,
    state: Tensor,
    lr: Tensor,
    count: int,
    trained: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return parameters and state after step ``count`` (the first is 1), as in ``torch.optim``.

    ``numbers`` are the optimiser's settings, e.g. :meth:`trajmatch.ops.Adam.numbers`. ``state`` is
    ``[1, P]`` for SGD and ``[2, P]`` for Adam. ``lr`` is a result of :func:`step_size`.
    """
    # Kind 0 is SGD, kind 1 is Adam.
    kind, *settings = numbers
    if kind == 0:
        momentum, nesterov, weight_decay = settings
        grad = decayed(grad, theta, weight_decay, trained)
        buffer = momentum * state[0] + grad
        return theta - lr * (grad + momentum * buffer if nesterov else buffer), buffer[None]
    beta1, beta2, eps, weight_decay, decoupled = settings
    if decoupled:
        theta = theta * (1 - lr * weight_decay)
    else:
        grad = decayed(grad, theta, weight_decay, trained)
    mean = beta1 * state[0] + (1 - beta1) * grad
    square = beta2 * state[1] + (1 - beta2) * grad.square()
    # `square` is 0 where the gradient has always been 0, and the root has no derivative at 0. As
    # gradients tend to 0, the derivative of the step tends to that of mean / eps, so treat the root
    # of 0 as a constant. Taking the root of 1 instead of 0 keeps NaN out of the derivative.
    positive = square > 0
    root = torch.where(positive, square, 1.0).sqrt() * positive
    divisor = root / math.sqrt(1 - beta2**count) + eps
    return theta - lr / (1 - beta1**count) * (mean / divisor), torch.stack((mean, square))


def norm_act_pool(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    norm: str = "instance",
    activation: str = "relu",
    pooling: str = "average",
    eps: float = NORM_EPS,
) -> Tensor:
    """Apply norm, activation and 2x2 pooling to ``x [B, C, H, W]``."""
    groups, elementwise, _ = NORMS[norm]
    if elementwise:
        x = F.layer_norm(x, list(x.shape[1:]), weight, bias, eps)
    elif groups != 0:
        x = F.group_norm(x, groups or x.shape[1], weight, bias, eps)
    if activation == "leaky_relu":
        x = F.leaky_relu(x, LEAKY_SLOPE)
    elif activation != "none":
        x = {"relu": torch.relu, "sigmoid": torch.sigmoid}[activation](x)
    if pooling == "none":
        return x
    return F.avg_pool2d(x, 2) if pooling == "average" else F.max_pool2d(x, 2)


def dsa(images: Tensor, parameters: Tensor) -> Tensor:
    """Return ``images [B, C, H, W]``, each transformed by its row of ``parameters [B, 5]``."""
    transforms: tuple[Callable[..., Tensor], ...] = (_color, _crop, _cutout, _flip, _sample)
    result = images
    for kind, transform in enumerate(transforms):
        chosen = (parameters[:, 0] == kind).nonzero().squeeze(1)
        if len(chosen) > 0:
            numbers = parameters[chosen, 1:].T[..., None, None, None]  # four tensors [B, 1, 1, 1]
            result = result.index_copy(0, chosen, transform(images[chosen], *numbers))
    return result


def _color(
    images: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor, _: Tensor
) -> Tensor:
    brightness, saturation, contrast = (
        each.to(images.dtype) for each in (brightness, saturation, contrast)
    )
    # Saturation does not change the mean of the image, so all three steps are one expression:
    # c s x + c (1 - s) grey + (1 - c) mean + b, with brightness b, saturation s and contrast c.
    grey = images.mean(1, keepdim=True)
    mean = grey.mean((2, 3), keepdim=True)
    constant = torch.addcmul(mean + brightness, mean, contrast, value=-1)
    base = torch.addcmul(constant, grey, contrast * (1 - saturation))
    return torch.addcmul(base, images, contrast * saturation)


def _crop(images: Tensor, shift_y: Tensor, shift_x: Tensor, *_: Tensor) -> Tensor:
    height, width = images.shape[2:]
    # Pad by a whole image on every side, so that any shift is a window of the padded image. Larger
    # shifts leave only zeros, so they can be clamped.
    padded = F.pad(images, (width, width, height, height))
    tops = (height + shift_y.flatten().long()).clamp(0, 2 * height).tolist()
    lefts = (width + shift_x.flatten().long()).clamp(0, 2 * width).tolist()
    moved = zip(padded, tops, lefts, strict=True)
    return torch.stack([x[:, y : y + height, z : z + width] for x, y, z in moved])


def _cutout(images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor) -> Tensor:
    y = torch.arange(images.shape[2], device=images.device).view(1, 1, -1, 1) - top
    x = torch.arange(images.shape[3], device=images.device).view(1, 1, 1, -1) - left
    return images.masked_fill((y >= 0) & (y < height) & (x >= 0) & (x < width), 0)


def _flip(images: Tensor, flipped: Tensor, *_: Tensor) -> Tensor:
    return torch.where(flipped != 0, images.flip(3), images)


def _sample(images: Tensor, m00: Tensor, m01: Tensor, m10: Tensor, m11: Tensor) -> Tensor:
    dtype, device = images.dtype, images.device
    y = torch.linspace(-1, 1, images.shape[2], dtype=dtype, device=device).view(1, -1, 1)
    x = torch.linspace(-1, 1, images.shape[3], dtype=dtype, device=device).view(1, 1, -1)
    m00, m01, m10, m11 = (each.to(dtype).squeeze(1) for each in (m00, m01, m10, m11))
    # [B, H, W, 2]: the point (x, y) of the image that each pixel of the result reads.
    grid = torch.stack((m00 * x + m01 * y, m10 * x + m11 * y), -1)
    return F.grid_sample(images, grid, align_corners=True)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy of ``logits [B, K]`` and class indices or target logits."""
    if not targets.is_floating_point():
        # By default PyTorch ignores labels of -100. Here -100 is an error like any other label out
        # of range, so the ignored number is one that no label has.
        return F.cross_entropy(logits, targets, ignore_index=torch.iinfo(torch.int64).min)
    return -(F.softmax(targets, dim=1) * F.log_softmax(logits, dim=1)).sum(dim=1).mean()


def loss_value(
    model: nn.Module,
    theta: Tensor,
    images: Tensor,
    labels: Tensor | None,
    loss: Loss,
    update_buffers: bool = False,
    soft_labels: str = "logits",
) -> Tensor:
    """Return the loss that :func:`gradient` differentiates, ``[]``.

    Raises:
        ValueError: Floating labels differ in shape from the outputs, or a loss function does not
            return a scalar that depends on the outputs.
    """
    outputs = call_flat(model, theta, images, update_buffers)
    if loss == "sum_logits":
        return outputs.sum()
    assert labels is not None
    if not isinstance(loss, str):
        return _scalar(loss(outputs, labels), outputs)
    soft = labels.is_floating_point()
    if soft and labels.shape != outputs.shape:
        raise ValueError(
            f"trajmatch: expected labels to have shape {list(outputs.shape)} (the shape of the "
            f"model's outputs), but got {list(labels.shape)}"
        )
    if loss == "mse":
        return F.mse_loss(outputs, labels)
    if soft and soft_labels == "probabilities":
        return F.cross_entropy(outputs, labels)
    return soft_cross_entropy(outputs, labels)


def _scalar(value: object, outputs: Tensor) -> Tensor:
    """Return the value of a loss function; raise ValueError unless it is a scalar with a graph."""
    constant = isinstance(value, Tensor) and outputs.requires_grad and not value.requires_grad
    if isinstance(value, Tensor) and value.shape == () and not constant:
        return value
    shape = f" of shape {list(value.shape)}" if isinstance(value, Tensor) else ""
    shape += " that has no gradient with respect to the outputs" if constant else ""
    raise ValueError(
        "trajmatch: expected loss to return a scalar tensor, the mean over the batch, but got a "
        f"{type(value).__name__}{shape}"
    )


def gradient(
    model: nn.Module,
    theta: Tensor,
    images: Tensor,
    labels: Tensor | None,
    loss: Loss = "cross_entropy",
    update_buffers: bool = False,
    soft_labels: str = "logits",
) -> tuple[Tensor, Tensor]:
    """Return the loss and its gradient ``[P]``; both stay in the graph."""
    with torch.enable_grad():
        if not theta.requires_grad:
            theta = theta.detach().requires_grad_()
        value = loss_value(model, theta, images, labels, loss, update_buffers, soft_labels)
        (grad,) = torch.autograd.grad(value, theta, create_graph=True)
    return value, grad


def gradient_and_jvp(
    model: nn.Module,
    theta: Tensor,
    images: Tensor,
    labels: Tensor | None,
    tangent: Tensor | None = None,
    image_tangent: Tensor | None = None,
    loss: Loss = "cross_entropy",
    soft_labels: str = "logits",
    examine: bool = False,
) -> tuple[Tensor, GradientJvp]:
    """Return the gradient ``[P]``, and the derivatives of loss and gradients along the tangents.

    With ``examine``, raise NotImplementedError if a backward pass is ``once_differentiable``.
    """
    soft = labels is not None and labels.is_floating_point() and loss != "sum_logits"
    theta = theta.detach().requires_grad_()
    inputs, images = [theta], images.detach()
    # Tokens have no gradient.
    if images.is_floating_point():
        inputs.append(images.requires_grad_())
    # Theta and images have tangents; labels have derivatives, but no tangent.
    first_order = inputs.copy()
    if soft:
        assert labels is not None
        labels = labels.detach().requires_grad_()
        inputs.append(labels)
    with torch.enable_grad():
        value = loss_value(model, theta, images, labels, loss, soft_labels=soft_labels)
        grads = torch.autograd.grad(value, first_order, create_graph=True)
        if examine:
            _check_graph(grads)
        pairs = zip(grads, (tangent, image_tangent), strict=False)
        directional = sum(((g * t).sum() for g, t in pairs if t is not None), torch.zeros(()))
        # Hessians are symmetric, so a second reverse pass suffices: the derivatives of the
        # gradients along the tangents are the gradient of <gradients, tangents>. If the loss is
        # linear in all inputs, the gradients have no graph, and their derivatives are 0.
        seconds = (
            torch.autograd.grad(directional, inputs, materialize_grads=True)
            if directional.requires_grad
            else tuple(torch.zeros_like(each) for each in inputs)
        )
    grad_images = seconds[1] if images.requires_grad else None
    return grads[0].detach(), GradientJvp(
        directional.detach().to(theta.dtype), seconds[0], grad_images, seconds[-1] if soft else None
    )


def gradient_jvp(*args: Any, **settings: Any) -> GradientJvp:
    """Return only the derivatives of :func:`gradient_and_jvp`, for the same arguments."""
    return gradient_and_jvp(*args, **settings)[1]


def _check_graph(grads: Sequence[Tensor]) -> None:
    """Raise NotImplementedError if a node of the gradients' graph is ``once_differentiable``."""
    nodes, seen = [grad.grad_fn for grad in grads], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes.extend(each for each, _ in node.next_functions)
        # once_differentiable puts this node into the graph, but without a path to the inputs. So
        # autograd.grad skips it: no error is raised, and terms of the second derivative are lost.
        if node.name() == "torch::autograd::Error":
            raise NotImplementedError(
                "trajmatch: expected a model that is twice differentiable, but got one with a "
                "torch.autograd.Function whose backward is once_differentiable; "
                "`trajmatch doctor --network` names the layer"
            )


def unroll(
    model: nn.Module,
    theta0: Tensor,
    images: Tensor,
    labels: Tensor,
    lr: Tensor | float,
    batches: Tensor | Sequence[Tensor],
    *,
    loss: Loss = "cross_entropy",
    soft_labels: str = "logits",
    momentum: float = 0.0,
    optimiser: Any = None,
    state: OptimiserState | None = None,
    return_state: bool = False,
    loss_scale: float = 1.0,
    steps: Sequence[int] | None = None,
    augment: Callable[[Tensor, int], Tensor] | None = None,
    tape_bytes: int = 0,
) -> Any:
    """Run student steps in one graph, which keeps all activations; ``tape_bytes`` has no effect."""
    theta = theta0 if theta0.requires_grad else theta0.detach().requires_grad_()
    numbers = [0.0, momentum, 0.0, 0.0] if optimiser is None else optimiser.numbers()
    rows = 2 if numbers[0] else int(numbers[1] > 0)
    # SGD without momentum returns no state, but optimiser_step always takes a buffer.
    memory = theta.new_zeros(max(rows, 1), len(theta))
    if state is not None and rows > 0:
        memory = state.tensors
    done = 0 if state is None else state.steps
    lr = torch.as_tensor(lr, dtype=theta.dtype, device=theta.device)
    sizes, trained = [each.numel() for each in model.parameters()], trainable(model)
    reached = {0: theta}
    for step, batch in enumerate(batches):
        batch_images = images[batch]
        if augment is not None:
            batch_images = augment(batch_images, step)
        with torch.enable_grad():
            value = loss_scale * loss_value(
                model, theta, batch_images, labels[batch], loss, soft_labels=soft_labels
            )
            (grad,) = torch.autograd.grad(value, theta, create_graph=True)
            rate = step_size(lr, step, sizes, trained)
            theta, memory = optimiser_step(
                numbers, theta, grad, memory, rate, done + step + 1, trained
            )
        reached[step + 1] = theta
    thetas = theta if steps is None else torch.stack([reached[count] for count in steps])
    if return_state:
        return thetas, OptimiserState(memory[:rows], done + len(batches))
    return thetas
