"""The steps of an unrolled student in Python, and their adjoint, over any student."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trajmatch.ops.arguments import Augment, DsaReplay
from trajmatch.ops.errors import explained
from trajmatch.ops.replay import (
    Conditions,
    Fingerprints,
    random_state,
    restore_random_state,
    twice_differentiable,
)
from trajmatch.ops.student import Point, Student
from trajmatch.reference import GradientJvp


class Steps(NamedTuple):
    """Settings of the steps of an unroll.

    Attributes:
        batches: Indices of the images of each step.
        counts: Counts of steps done after which parameters are returned.
        momentum: Heavy-ball factor.
        augment: The augmentation; None: none.
        exact: As for :func:`trajmatch.ops.unroll`.
    """

    batches: Sequence[Tensor]
    counts: Sequence[int]
    momentum: float
    augment: Augment | None
    exact: bool


class Loop:
    """The steps of one unroll and its adjoint, over any student.

    The adjoint computes each step again, under the conditions of the forward pass, and raises
    RuntimeError if a step does not come out the same.

    Args:
        student: The student.
        steps: What its steps are.
        model: The module that the student calls; None on the engine, which has no state.
    """

    def __init__(self, student: Student, steps: Steps, model: nn.Module | None = None) -> None:
        self.student, self.steps, self.model = student, steps, model
        plain = steps.augment is None or isinstance(steps.augment, DsaReplay)
        # True if a step depends on nothing that can change before its repetition.
        self.fixed = plain and model is None
        self.fingerprints = Fingerprints()
        self.random_states: list[bytes] = []
        self._tangent_scale: Tensor | None = None

    def _augmented(self, batch: Tensor, step: int) -> Tensor:
        """The images that the student sees in a step; raise unless it can take them."""
        if self.steps.augment is None:
            return batch
        shown = self.steps.augment(batch, step)
        came, wanted = type(shown).__name__, f"a torch.Tensor of shape {list(batch.shape)}"
        if isinstance(shown, Tensor):
            # A module may take other sizes; the engine's networks have one.
            fits = shown.shape[:1] == batch.shape[:1]
            fits = fits and (self.model is not None or shown.shape == batch.shape)
            if fits and shown.dtype == batch.dtype and shown.device == batch.device:
                return shown
            came = f"{shown.dtype} of shape {list(shown.shape)} on {shown.device}"
            wanted = f"{batch.dtype} of shape {list(batch.shape)} on {batch.device}"
        raise ValueError(f"trajmatch::unroll: expected augment to return {wanted}, but got {came}")

    def gradient(self, step: int, at: Point) -> Tensor:
        """The gradient of a step on its augmented batch. ``[P]``."""
        _, grad = self.student.gradient(at)
        if not self.fixed:
            self.fingerprints.record(step, at.images if self.model is None else grad)
        return grad

    def jvp(self, step: int, at: Point, r: Tensor) -> GradientJvp:
        """Its derivatives along ``r``."""
        scale = self._tangent_scale
        again, found = self.student.jvp(at, r if scale is None else scale * r)
        if not self.fixed:
            repeated = at.images if self.model is None or again is None else again
            self.fingerprints.repeat(step, repeated)
        if scale is None:
            return found
        return GradientJvp._make(None if each is None else each / scale for each in found)

    def forward(
        self, theta: Tensor, images: Tensor, labels: Tensor, lr: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Parameters after the counts asked for, and ``theta_0 .. theta_{N-1}``."""
        trajectory, buffer, reached = [], None, {}
        self.conditions = Conditions(self.model, theta.device)
        for step, batch in enumerate(self.steps.batches):
            trajectory.append(theta)
            if not self.fixed:
                self.random_states.append(random_state(theta.device))
            shown = self._augmented(images[batch], step)
            grad = self.gradient(step, Point(theta, shown, labels[batch]))
            theta, buffer = torch.ops.trajmatch.sgd_step(
                theta, grad, lr, buffer, self.steps.momentum
            )
            if step + 1 in self.steps.counts:
                reached[step + 1] = theta
        # True if the steps drew random numbers from the global generators.
        self._draws = not self.fixed and self.random_states[0] != random_state(theta.device)
        return torch.stack([reached[count] for count in self.steps.counts]), trajectory

    def adjoint(self, *problem: Any) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
        """Gradients of ``theta_0``, images, labels and step size; None for what is not floating.

        Args:
            problem: As for :meth:`_adjoint`.

        Raises RuntimeError if a step does not come out as in the forward pass.
        """
        if self.fixed:
            return self._adjoint(*problem)
        device = problem[0].device
        state = random_state(device)
        try:
            with self.conditions.restored():
                found = self._adjoint(*problem)
        finally:
            restore_random_state(state, device)
        if not (device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
            self.fingerprints.check(self.conditions.eps(problem[0].dtype))
        return found

    def _adjoint(
        self,
        above: Tensor,
        trajectory: Sequence[Tensor],
        images: Tensor,
        labels: Tensor,
        lr: Tensor,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
        """The steps in reverse.

        ``adjoint`` is that of the parameters, ``lr * r`` that of the step's gradient; see
        ``csrc/core/sgd_step.h``.
        """
        batches, counts, momentum, augment, exact = self.steps
        if self.conditions.casts:
            # Autocast rounds each product, so its tangent has the size that a graph of all steps
            # gives it: both then round alike.
            self._tangent_scale = torch.where(lr == 0, torch.ones_like(lr), lr)
        adjoint = torch.zeros_like(trajectory[0])
        r = torch.zeros_like(adjoint)
        grad_images = torch.zeros_like(images) if images.is_floating_point() else None
        grad_labels = torch.zeros_like(labels) if labels.is_floating_point() else None
        grad_lr = torch.zeros_like(lr)
        for step in reversed(range(len(batches))):
            for row, count in enumerate(counts):
                if count == step + 1:
                    adjoint = adjoint + above[row]
            r = momentum * r - adjoint
            batch = batches[step]
            if self._draws:
                restore_random_state(self.random_states[step], adjoint.device)
            # The augmentation is replayed with its graph, which carries the images' gradient back.
            with torch.enable_grad():
                raw = images[batch].requires_grad_(grad_images is not None)
                shown = self._augmented(raw, step)
            at = Point(trajectory[step], shown.detach(), labels[batch])
            directional, hessian_r, image_share, label_share = self.jvp(step, at, r)
            if grad_images is not None and image_share is not None:
                if augment is not None:
                    (image_share,) = torch.autograd.grad(
                        shown, raw, image_share, materialize_grads=True
                    )
                grad_images.index_add_(0, batch, lr * image_share)
            if grad_labels is not None and label_share is not None:
                grad_labels.index_add_(0, batch, lr * label_share)
            grad_lr = grad_lr + directional
            if exact:
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
        """Gradients of ``theta0``, images, labels and step size."""
        images, labels, lr, *trajectory = ctx.saved_tensors
        with twice_differentiable(), explained("unroll"):
            return (None, *ctx.loop.adjoint(above, trajectory, images, labels, lr))
