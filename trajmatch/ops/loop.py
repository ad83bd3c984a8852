"""The steps of an unrolled student in Python, and their adjoint, over any student."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from trajmatch import reference
from trajmatch.ops.arguments import Augment, DsaReplay
from trajmatch.ops.errors import explained
from trajmatch.ops.replay import (
    Conditions,
    Fingerprints,
    RandomState,
    twice_differentiable,
)
from trajmatch.ops.student import autograd_gradient


class StepJvp(NamedTuple):
    """Derivatives of a step along a direction, and its gradient.

    Attributes:
        directional: Derivative of the loss. ``[]``.
        grad_theta: Derivative of its gradient in the parameters. ``[P]``.
        grad_images: Derivative of its gradient in the images. ``[B, C, H, W]``.
        grad_labels: Derivative of its gradient in logit labels, ``[B, K]``; None for class indices.
        gradient: The gradient in the parameters, computed again, ``[P]``; None on the engine.
    """

    directional: Tensor
    grad_theta: Tensor
    grad_images: Tensor
    grad_labels: Tensor | None
    gradient: Tensor | None = None


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
        return StepJvp(directional, grad_theta, grad_images, grad_labels if soft else None)


class AutogradStudent:
    """One step of any module on autograd."""

    def __init__(self, model: nn.Module, loss_scale: float) -> None:
        self.model, self.scale = model, loss_scale
        self._examined = False

    def gradient(self, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """The gradient in the parameters. ``[P]``."""
        _, grad = autograd_gradient(self.model, theta, images, labels, "cross_entropy")
        return self.scale * grad

    def jvp(self, theta: Tensor, images: Tensor, labels: Tensor, r: Tensor) -> StepJvp:
        """Its derivative along ``r``, with those of loss, images and labels."""
        grad, result = reference.gradient_and_jvp(
            self.model, theta, images, labels, self.scale * r, examine=not self._examined
        )
        self._examined = True
        return StepJvp(*result, self.scale * grad)


class Loop:
    """The steps of one unroll and its adjoint, over any student.

    The adjoint computes each step again, under the conditions of the forward pass, and raises
    RuntimeError if a step does not come out the same.

    Args:
        student: One step of the student.
        batches: Indices of the images of each step.
        counts: Counts of steps done after which parameters are returned.
        momentum: Heavy-ball factor.
        augment: The augmentation; None: none.
        exact: As for :func:`trajmatch.ops.unroll`.
        model: The module that the student calls; None on the engine, which has no state.
    """

    def __init__(
        self,
        student: Student,
        batches: Sequence[Tensor],
        counts: list[int],
        momentum: float,
        augment: Augment | None,
        exact: bool,
        model: nn.Module | None = None,
    ) -> None:
        self.student, self.batches, self.counts = student, batches, counts
        self.momentum, self.augment, self.exact = momentum, augment, exact
        self.model = model
        # True if a step depends on nothing that can change before its repetition.
        self.fixed = model is None and (augment is None or isinstance(augment, DsaReplay))
        self.fingerprints = Fingerprints()
        self.random_states: list[RandomState] = []
        self._tangent_scale: Tensor | None = None

    def _augmented(self, batch: Tensor, step: int) -> Tensor:
        """The images that the student sees in a step."""
        if self.augment is None:
            return batch
        shown = self.augment(batch, step)
        self._check_augmented(batch, shown)
        return shown

    def _check_augmented(self, batch: Tensor, shown: Tensor) -> None:
        """Raise unless an augmentation returned images that the student takes."""
        came, wanted = type(shown).__name__, f"a torch.Tensor of shape {list(batch.shape)}"
        if isinstance(shown, Tensor):
            # A module may take other sizes; the engine's networks have one.
            fits = shown.shape[:1] == batch.shape[:1]
            fits = fits and (self.model is not None or shown.shape == batch.shape)
            if fits and shown.dtype == batch.dtype and shown.device == batch.device:
                return
            came = f"{shown.dtype} of shape {list(shown.shape)} on {shown.device}"
            wanted = f"{batch.dtype} of shape {list(batch.shape)} on {batch.device}"
        raise ValueError(f"trajmatch::unroll: expected augment to return {wanted}, but got {came}")

    def gradient(self, step: int, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """The gradient of a step on its augmented batch. ``[P]``."""
        grad = self.student.gradient(theta, images, labels)
        if not self.fixed:
            self.fingerprints.record(step, images if self.model is None else grad)
        return grad

    def jvp(self, step: int, theta: Tensor, images: Tensor, labels: Tensor, r: Tensor) -> StepJvp:
        """Its derivative along ``r``."""
        scale = self._tangent_scale
        found = self.student.jvp(theta, images, labels, r if scale is None else scale * r)
        if not self.fixed:
            again = images if self.model is None else found.gradient
            assert again is not None
            self.fingerprints.repeat(step, again)
        if scale is None:
            return found
        return StepJvp(
            found.directional / scale,
            found.grad_theta / scale,
            found.grad_images / scale,
            None if found.grad_labels is None else found.grad_labels / scale,
            found.gradient,
        )

    def _keep_random_state(self, device: torch.device) -> None:
        """Keep the states of the random generators; equal ones are one object."""
        if self.fixed:
            return
        state = RandomState.now(device)
        same = self.random_states and self.random_states[-1] == state
        self.random_states.append(self.random_states[-1] if same else state)

    @property
    def _draws(self) -> bool:
        """True if the forward pass drew random numbers from the global generators."""
        return bool(self.random_states) and self.random_states[0] is not self.random_states[-1]

    def forward(
        self, theta: Tensor, images: Tensor, labels: Tensor, lr: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Parameters after the counts asked for, and ``theta_0 .. theta_{N-1}``."""
        trajectory, buffer, reached = [], None, {}
        self.conditions = Conditions(self.model, theta.device)
        for step, batch in enumerate(self.batches):
            trajectory.append(theta)
            self._keep_random_state(theta.device)
            shown = self._augmented(images[batch], step)
            grad = self.gradient(step, theta, shown, labels[batch])
            theta, buffer = torch.ops.trajmatch.sgd_step(theta, grad, lr, buffer, self.momentum)
            if step + 1 in self.counts:
                reached[step + 1] = theta
        self._keep_random_state(theta.device)
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

        Raises RuntimeError if a step does not come out as in the forward pass.
        """
        if self.fixed:
            return self._adjoint(above, trajectory, images, labels, lr)
        device = trajectory[0].device
        random_state = RandomState.now(device)
        try:
            with self.conditions.restored():
                found = self._adjoint(above, trajectory, images, labels, lr)
        finally:
            random_state.restore(device)
        if not (device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
            self.fingerprints.check(self.conditions.eps(images.dtype))
        return found

    def _adjoint(
        self,
        above: Tensor,
        trajectory: Sequence[Tensor],
        images: Tensor,
        labels: Tensor,
        lr: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """The steps in reverse.

        ``adjoint`` is that of the parameters, ``lr * r`` that of the step's gradient; see
        ``csrc/core/sgd_step.h``.
        """
        if self.conditions.casts:
            # Autocast rounds each product, so its tangent has the size that a graph of all steps
            # gives it: both then round alike.
            self._tangent_scale = torch.where(lr == 0, torch.ones_like(lr), lr)
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
            if self._draws:
                self.random_states[step].restore(adjoint.device)
            # The augmentation is replayed with its graph, which carries the images' gradient back.
            with torch.enable_grad():
                raw = images[batch].requires_grad_()
                shown = self._augmented(raw, step)
            directional, hessian_r, image_share, label_share, _ = self.jvp(
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
        with twice_differentiable(), explained("unroll"):
            thetas, trajectory = loop.forward(theta0.detach(), images, labels, lr)
        ctx.loop = loop
        ctx.save_for_backward(images, labels, lr, *trajectory)
        return thetas

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of ``theta0``, images, logit labels and step size."""
        images, labels, lr, *trajectory = ctx.saved_tensors
        with twice_differentiable(), explained("unroll"):
            return (None, *ctx.loop.adjoint(above, trajectory, images, labels, lr))
