"""One outer iteration: the exact gradient of the matching loss, and the update it asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trajmatch import ops
from trajmatch.distill.config import DistillConfig
from trajmatch.distill.initialise import SyntheticSet
from trajmatch.distill.matching import Segment, matching_loss
from trajmatch.distill.step_size import StepSize


@dataclass(frozen=True)
class StudentSteps:
    """How the student's steps are taken: the choices of :func:`trajmatch.ops.unroll`."""

    momentum: float = 0.0
    precise: bool = False
    tape_bytes: int = 0


@dataclass(frozen=True)
class Match:
    """What one student is trained along; an outer iteration has one match or several.

    Attributes:
        segment: Where the student starts and what it should reach.
        batches: Indices into the synthetic images, one vector ``[B]`` for each student step.
        augment: Maps the images of a batch and the number of the step, differentiably.
    """

    segment: Segment
    batches: Sequence[Tensor]
    augment: Callable[[Tensor, int], Tensor] | None


@dataclass(frozen=True)
class OuterGradient:
    """The matching loss of one match, or of one outer iteration, and its derivatives.

    Attributes:
        loss: The matching loss.
        images: Its gradient in the synthetic images. ``[n, C, H, W]``.
        step_size: Its derivative in the step size.
        stands_still: Whether the expert's segment has no length, so that the loss means nothing.
    """

    loss: float
    images: Tensor
    step_size: float
    stands_still: bool


@dataclass(frozen=True)
class Update:
    """What images, step size and their optimiser become.

    Attributes:
        images: ``[n, C, H, W]``.
        buffer: Momentum buffer of the images. ``[n, C, H, W]``.
        step_size: Step size with its buffer.
    """

    images: Tensor
    buffer: Tensor
    step_size: StepSize


def outer_gradients(
    model: nn.Module,
    matches: Sequence[Match],
    synthetic: SyntheticSet,
    step_size: float,
    *,
    steps: StudentSteps,
) -> list[OuterGradient]:
    """The gradients of several matches at the same images and step size, one after another.

    Args:
        model: The students' network.
        matches: What each student is trained along.
        synthetic: What they train on.
        step_size: What step size they train with.
        steps: How their steps are taken.

    Returns:
        :func:`outer_gradient` of each match.
    """
    return [
        outer_gradient(
            model,
            match.segment,
            synthetic,
            step_size,
            match.batches,
            steps=steps,
            augment=match.augment,
        )
        for match in matches
    ]


def outer_gradient(
    model: nn.Module,
    segment: Segment,
    synthetic: SyntheticSet,
    step_size: float,
    batches: Sequence[Tensor],
    *,
    steps: StudentSteps,
    augment: Callable[[Tensor, int], Tensor] | None,
) -> OuterGradient:
    """Trains the student along a segment and differentiates where it ends.

    Args:
        model: The student's network; its own parameters are not used.
        segment: Where the student starts and what it should reach.
        synthetic: What it trains on.
        step_size: What step size it trains with.
        batches: Indices into the synthetic images, one vector for each student step.
        steps: How the student's steps are taken.
        augment: Maps the images of a batch and the number of the step, differentiably.

    Returns:
        Loss and gradients, exact through all the steps.
    """
    images = synthetic.images.detach().requires_grad_()
    lr = torch.tensor(step_size, dtype=images.dtype, device=images.device, requires_grad=True)
    loss, grad_images, grad_lr = differentiate(
        model,
        segment,
        SyntheticSet(images, synthetic.labels),
        lr,
        batches,
        steps=steps,
        augment=augment,
    )
    return OuterGradient(
        loss=float(loss),
        images=grad_images,
        step_size=float(grad_lr),
        stands_still=bool(torch.equal(segment.start, segment.target)),
    )


def differentiate(
    model: nn.Module,
    segment: Segment,
    synthetic: SyntheticSet,
    lr: Tensor,
    batches: Sequence[Tensor],
    *,
    steps: StudentSteps,
    augment: Callable[[Tensor, int], Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same with tensors in and tensors out, without waiting for a device.

    Args:
        model: The student's network.
        segment: Where the student starts and what it should reach.
        synthetic: What it trains on; the images require a gradient.
        lr: Its step size. ``[]``, requires a gradient.
        batches: Indices into the synthetic images.
        steps: How the student's steps are taken.
        augment: Augmentation of a batch.

    Returns:
        The loss ``[]``, detached, and its gradients in the images and in ``lr``.
    """
    student = ops.unroll(
        model,
        segment.start,
        synthetic.images,
        synthetic.labels,
        lr,
        batches,
        momentum=steps.momentum,
        precise=steps.precise,
        tape_bytes=steps.tape_bytes,
        augment=augment,
    )
    loss = matching_loss(student, segment)
    grad_images, grad_lr = torch.autograd.grad(loss, (synthetic.images, lr))
    return loss.detach(), grad_images, grad_lr


def mean_gradient(gradients: Sequence[OuterGradient]) -> OuterGradient:
    """Loss and gradients of the mean of several matches' losses; of one match, its own.

    Args:
        gradients: Those of the matches, at the same images and step size; at least one.

    Returns:
        Their mean. It stands still where one of them does: its loss means nothing.
    """
    count = len(gradients)
    images = gradients[0].images
    for gradient in gradients[1:]:
        images = images + gradient.images
    return OuterGradient(
        loss=sum(gradient.loss for gradient in gradients) / count,
        images=images / count,
        step_size=sum(gradient.step_size for gradient in gradients) / count,
        stands_still=any(gradient.stands_still for gradient in gradients),
    )


def propose_update(
    synthetic: SyntheticSet,
    buffer: Tensor,
    step_size: StepSize,
    gradient: OuterGradient,
    config: DistillConfig,
) -> Update:
    """One SGD step on the images and on the step size; applies nothing.

    Args:
        synthetic: The images as they are.
        buffer: Their momentum buffer. ``[n, C, H, W]``.
        step_size: The step size as it is.
        gradient: Gradients at both.
        config: Learning rates and momenta.

    Returns:
        What they would become.
    """
    new_buffer = config.momentum_img * buffer + gradient.images
    return Update(
        images=synthetic.images - config.lr_img * new_buffer,
        buffer=new_buffer,
        step_size=step_size.updated(
            gradient.step_size, config.lr_lr, config.momentum_lr, config.lr_param
        ),
    )
