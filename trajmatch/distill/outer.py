"""One outer iteration: the exact gradient of the matching loss, and the update it asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trajmatch import ops
from trajmatch.distill.config import DistillConfig
from trajmatch.distill.initialise import SyntheticSet
from trajmatch.distill.matching import MatchingLoss, Segment
from trajmatch.distill.state import State
from trajmatch.distill.step_size import StepSize
from trajmatch.ops import Shards


@dataclass(frozen=True)
class StudentSteps:
    """How the student's steps are taken: the choices of :func:`trajmatch.ops.unroll`."""

    momentum: float = 0.0
    precise: bool = False
    tape_bytes: int = 0
    exact: bool = True
    micro_batch: int | None = None
    shards: Shards | None = None


@dataclass(frozen=True)
class Match:
    """What one student is trained along; an outer iteration has one match or several.

    Attributes:
        segment: Where the student starts and what it should reach.
        batches: Indices into the synthetic images, one vector ``[B]`` for each student step.
        augment: Maps the images of a batch and the number of the step, differentiably.
        loss_scale: ``kappa``, the factor of the student's loss; a number or ``[]``.
    """

    segment: Segment
    batches: Sequence[Tensor]
    augment: Callable[[Tensor, int], Tensor] | None
    loss_scale: float | Tensor = 1.0


@dataclass(frozen=True)
class OuterGradient:
    """The matching loss of one match, or of one outer iteration, and its derivatives.

    Attributes:
        loss: The matching loss.
        images: Its gradient in the synthetic images. ``[n, C, H, W]``.
        labels: Its gradient in soft labels. ``[n, K]``; None for hard ones.
        step_size: Its derivative in the step size.
        stands_still: Whether the expert's segment has no length, so that the loss means nothing.
    """

    loss: float
    images: Tensor
    step_size: float
    stands_still: bool
    labels: Tensor | None = None


@dataclass(frozen=True)
class Update:
    """What images, step size and their optimiser become.

    Attributes:
        images: ``[n, C, H, W]``.
        buffer: Momentum buffer of the images. ``[n, C, H, W]``.
        step_size: Step size with its buffer.
        labels: ``[n, K]``; None where labels are not learned.
        label_buffer: Momentum buffer of the labels. ``[n, K]``; None likewise.
    """

    images: Tensor
    buffer: Tensor
    step_size: StepSize
    labels: Tensor | None = None
    label_buffer: Tensor | None = None


def outer_gradients(
    model: nn.Module,
    matches: Sequence[Match],
    synthetic: SyntheticSet,
    step_size: float,
    *,
    steps: StudentSteps,
    loss: MatchingLoss,
) -> list[OuterGradient]:
    """The gradients of several matches at the same images and step size, one after another.

    Args:
        model: The students' network.
        matches: What each student is trained along.
        synthetic: What they train on.
        step_size: What step size they train with.
        steps: How their steps are taken.
        loss: What is made of where they went.

    Returns:
        :func:`outer_gradient` of each match.
    """
    return [
        outer_gradient(model, match, synthetic, step_size, steps=steps, loss=loss)
        for match in matches
    ]


def outer_gradient(
    model: nn.Module,
    match: Match,
    synthetic: SyntheticSet,
    step_size: float,
    *,
    steps: StudentSteps,
    loss: MatchingLoss,
) -> OuterGradient:
    """Trains the student along a segment and differentiates where it went.

    Args:
        model: The student's network; its own parameters are not used.
        match: What the student is trained along.
        synthetic: What it trains on.
        step_size: What step size it trains with.
        steps: How the student's steps are taken.
        loss: What is made of where it went.

    Returns:
        Loss and gradients, through all the steps.
    """
    images = synthetic.images.detach().requires_grad_()
    labels = synthetic.labels.detach().requires_grad_(synthetic.labels.is_floating_point())
    lr = torch.tensor(step_size, dtype=images.dtype, device=images.device, requires_grad=True)
    value, grad_lr, grad_images, *grad_labels = differentiate(
        model, match, SyntheticSet(images, labels), lr, steps=steps, loss=loss
    )
    return OuterGradient(
        loss=float(value),
        images=grad_images,
        step_size=float(grad_lr),
        stands_still=bool(torch.equal(match.segment.start, match.segment.target)),
        labels=grad_labels[0] if grad_labels else None,
    )


def differentiate(
    model: nn.Module,
    match: Match,
    synthetic: SyntheticSet,
    lr: Tensor,
    *,
    steps: StudentSteps,
    loss: MatchingLoss,
) -> tuple[Tensor, ...]:
    """The same with tensors in and tensors out, without waiting for a device.

    Args:
        model: The student's network.
        match: What the student is trained along.
        synthetic: What it trains on; the images require a gradient, and so do soft labels.
        lr: Its step size. ``[]``, requires a gradient.
        steps: How the student's steps are taken.
        loss: What is made of where it went.

    Returns:
        The loss ``[]``, detached, and its gradients in ``lr``, in the images and, where they are
        soft, in the labels.
    """
    counts = loss.student_steps(len(match.batches))
    thetas = ops.unroll(
        model,
        match.segment.start,
        synthetic.images,
        synthetic.labels,
        # A factor of the loss in every step is one of the step size.
        lr * match.loss_scale,
        match.batches,
        momentum=steps.momentum,
        steps=counts,
        precise=steps.precise,
        tape_bytes=steps.tape_bytes,
        exact=steps.exact,
        micro_batch=steps.micro_batch,
        shards=steps.shards,
        augment=match.augment,
    )
    student = dict(zip(counts, thetas.unbind(), strict=True))
    value = loss(match.segment, student, len(match.batches))
    leaves = [lr, synthetic.images]
    if synthetic.labels.requires_grad:
        leaves.append(synthetic.labels)
    return value.detach(), *torch.autograd.grad(value, leaves)


def mean_gradient(gradients: Sequence[OuterGradient]) -> OuterGradient:
    """Loss and gradients of the mean of several matches' losses; of one match, its own.

    Args:
        gradients: Those of the matches, at the same images and step size; at least one.

    Returns:
        Their mean. It stands still where one of them does: its loss means nothing.
    """
    count = len(gradients)
    images, labels = gradients[0].images, gradients[0].labels
    for gradient in gradients[1:]:
        images = images + gradient.images
        if labels is not None and gradient.labels is not None:
            labels = labels + gradient.labels
    return OuterGradient(
        loss=sum(gradient.loss for gradient in gradients) / count,
        images=images / count,
        step_size=sum(gradient.step_size for gradient in gradients) / count,
        stands_still=any(gradient.stands_still for gradient in gradients),
        labels=None if labels is None else labels / count,
    )


def propose_update(state: State, gradient: OuterGradient, config: DistillConfig) -> Update:
    """One SGD step on the images, on the step size and on labels that are learned.

    Args:
        state: Images, labels, step size and their momentum buffers; nothing of it changes.
        gradient: Gradients at them.
        config: Learning rates and momenta.

    Returns:
        What they would become.
    """
    buffer = config.momentum_img * state.buffer + gradient.images
    labels = label_buffer = None
    if state.label_buffer is not None:
        assert gradient.labels is not None
        label_buffer = config.momentum_label * state.label_buffer + gradient.labels
        labels = state.synthetic.labels - config.lr_label * label_buffer
    return Update(
        images=state.synthetic.images - config.lr_img * buffer,
        buffer=buffer,
        step_size=state.step_size.updated(
            gradient.step_size, config.lr_lr, config.momentum_lr, config.lr_param
        ),
        labels=labels,
        label_buffer=label_buffer,
    )
