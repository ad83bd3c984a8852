"""The steps of an unrolled student in Python, and their adjoint, over any student."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from trajmatch import reference
from trajmatch.networks.randomness import refuse_randomness
from trajmatch.ops.student import autograd_gradient

Augment = Callable[[Tensor, int], Tensor]

#: Derivatives of a step along a direction: of the loss ``[]``, and of its gradients in parameters
#: ``[P]``, images ``[B, C, H, W]`` and logit labels ``[B, K]`` (None for class indices).
StepJvp = tuple[Tensor, Tensor, Tensor, Tensor | None]


@runtime_checkable
class DsaReplay(Protocol):
    """An augmentation that can say what it does in the terms of :func:`trajmatch.ops.dsa`.

    :meth:`trajmatch.data.DSA.replay` makes one. An unrolled loop on the engine then augments by
    itself instead of calling it.
    """

    def __call__(self, images: Tensor, step: int) -> Tensor:
        """The augmented images of a step."""

    def dsa_parameters(self, step: int, count: int, height: int, width: int) -> Tensor:
        """The rows ``[count, 5]`` by which a call with that step transforms its images."""


class Student(Protocol):
    """One step of a student: the gradient of its loss, and the derivative of that."""

    def gradient(self, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """The gradient in the parameters. ``[P]``."""

    def jvp(self, theta: Tensor, images: Tensor, labels: Tensor, r: Tensor) -> StepJvp:
        """Its derivative along ``r`` ``[P]``, with those of loss, images and labels."""


class EngineStudent:
    """One step on the engine."""

    def __init__(self, network: list[int], loss_scale: float) -> None:
        self.network, self.scale = network, loss_scale

    def gradient(self, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """The gradient in the parameters. ``[P]``."""
        return torch.ops.trajmatch.student_gradient(
            theta, images, labels, self.network, 0, self.scale, False
        )[1]

    def jvp(self, theta: Tensor, images: Tensor, labels: Tensor, r: Tensor) -> StepJvp:
        """Its derivative along ``r``, with those of loss, images and labels."""
        directional, grad_theta, grad_images, grad_labels = (
            torch.ops.trajmatch.student_gradient_jvp(
                theta, images, labels, r, None, None, self.network, 0, self.scale
            )
        )
        soft = labels.is_floating_point()
        return directional, grad_theta, grad_images, grad_labels if soft else None


class AutogradStudent:
    """One step of any module on autograd."""

    def __init__(self, model: nn.Module, loss_scale: float) -> None:
        self.model, self.scale = model, loss_scale

    def gradient(self, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """The gradient in the parameters. ``[P]``."""
        with refuse_randomness(self.model, theta.device):
            _, grad = autograd_gradient(self.model, theta, images, labels, "cross_entropy")
        return self.scale * grad

    def jvp(self, theta: Tensor, images: Tensor, labels: Tensor, r: Tensor) -> StepJvp:
        """Its derivative along ``r``, with those of loss, images and labels."""
        result = reference.gradient_jvp(self.model, theta, images, labels, self.scale * r)
        return tuple(result)  # type: ignore[return-value]


class Loop:
    """The steps of one unroll and its adjoint, over any student."""

    def __init__(
        self,
        student: Student,
        batches: Sequence[Tensor],
        counts: list[int],
        momentum: float,
        augment: Augment | None,
        exact: bool,
    ) -> None:
        self.student, self.batches, self.counts = student, batches, counts
        self.momentum, self.augment, self.exact = momentum, augment, exact

    def _batch(self, images: Tensor, step: int) -> Tensor:
        batch = images[self.batches[step]]
        return batch if self.augment is None else self.augment(batch, step)

    def gradient(self, step: int, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """The gradient of a step on its augmented batch. ``[P]``."""
        return self.student.gradient(theta, images, labels)

    def jvp(self, step: int, theta: Tensor, images: Tensor, labels: Tensor, r: Tensor) -> StepJvp:
        """Its derivative along ``r``."""
        return self.student.jvp(theta, images, labels, r)

    def forward(
        self, theta: Tensor, images: Tensor, labels: Tensor, lr: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Parameters after the counts asked for, and ``theta_0 .. theta_{N-1}``."""
        trajectory, buffer, reached = [], None, {}
        for step, batch in enumerate(self.batches):
            trajectory.append(theta)
            grad = self.gradient(step, theta, self._batch(images, step), labels[batch])
            theta, buffer = torch.ops.trajmatch.sgd_step(theta, grad, lr, buffer, self.momentum)
            if step + 1 in self.counts:
                reached[step + 1] = theta
        return torch.stack([reached[count] for count in self.counts]), trajectory

    def adjoint(
        self,
        above: Tensor,
        trajectory: Sequence[Tensor],
        images: Tensor,
        labels: Tensor,
        lr: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Gradients of ``theta_0``, images, logit labels and step size.

        ``adjoint`` is that of the parameters, ``lr * r`` that of the step's gradient; see
        ``csrc/core/sgd_step.h``.
        """
        adjoint = torch.zeros_like(trajectory[0])
        r = torch.zeros_like(adjoint)
        grad_images = torch.zeros_like(images)
        grad_labels = torch.zeros_like(labels) if labels.is_floating_point() else None
        grad_lr = torch.zeros_like(lr)
        for step in reversed(range(len(self.batches))):
            for row, count in enumerate(self.counts):
                if count == step + 1:
                    adjoint = adjoint + above[row]
            r = self.momentum * r - adjoint
            batch = self.batches[step]
            # The augmentation is replayed with its graph, which carries the images' gradient back.
            with torch.enable_grad():
                raw = images[batch].requires_grad_()
                shown = raw if self.augment is None else self.augment(raw, step)
            directional, hessian_r, image_share, label_share = self.jvp(
                step, trajectory[step], shown.detach(), labels[batch], r
            )
            if self.augment is not None:
                (image_share,) = torch.autograd.grad(
                    shown, raw, image_share, materialize_grads=True
                )
            grad_images.index_add_(0, batch, lr * image_share)
            if grad_labels is not None and label_share is not None:
                grad_labels.index_add_(0, batch, lr * label_share)
            grad_lr = grad_lr + directional
            if self.exact:
                adjoint = adjoint + lr * hessian_r
        return adjoint, grad_images, grad_labels, grad_lr


class Unroll(torch.autograd.Function):
    """A loop as one node of the graph, which keeps the parameters of each step and no more."""

    @staticmethod
    def forward(
        ctx: Any, loop: Loop, theta0: Tensor, images: Tensor, labels: Tensor, lr: Tensor
    ) -> Tensor:
        """Parameters after the counts that the loop was asked for. ``[counts, P]``."""
        thetas, trajectory = loop.forward(theta0.detach(), images, labels, lr)
        ctx.loop = loop
        ctx.save_for_backward(images, labels, lr, *trajectory)
        return thetas

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of ``theta0``, images, logit labels and step size."""
        images, labels, lr, *trajectory = ctx.saved_tensors
        return (None, *ctx.loop.adjoint(above, trajectory, images, labels, lr))
