"""Python loop over the steps of an unroll, and its adjoint, for any student."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trajmatch.ops import replay
from trajmatch.ops.arguments import Augment, DsaReplay
from trajmatch.ops.errors import explained
from trajmatch.ops.optimisers import Optimiser, Updates
from trajmatch.ops.student import Point, Student
from trajmatch.reference import GradientJvp


class Steps(NamedTuple):
    """Settings of the steps of an unroll; ``exact`` is as for :func:`trajmatch.ops.unroll`."""

    #: Image indices of each step.
    batches: Sequence[Tensor]
    #: Numbers of steps after which parameters are returned.
    counts: Sequence[int]
    optimiser: Optimiser
    augment: Augment | None
    exact: bool
    #: Optimiser steps and their adjoints. None for plain SGD with one step size, if no state is
    #: given or returned: the adjoint then needs only the parameters before each step.
    updates: Updates | None = None
    #: False if no adjoint is needed.
    keep: bool = True


#: Gradients of ``theta_0``, images, labels, step sizes and initial state. None stands for the
#: gradient of class indices or tokens.
Gradients = tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor]


class Loop:
    """Steps of one unroll, and their adjoint; ``model`` is None if the student is on the engine."""

    def __init__(self, student: Student, steps: Steps, model: nn.Module | None = None) -> None:
        self.student, self.steps, self.model = student, steps, model
        plain = steps.augment is None or isinstance(steps.augment, DsaReplay)
        # True if nothing that a step depends on can change before it is recomputed: the engine has
        # no state, and a DsaReplay returns the same parameters for the same step.
        self.fixed = plain and model is None
        self.fingerprints = replay.Fingerprints()
        self.random_states: list[bytes] = []
        self._tangent_scale: Tensor | None = None

    def _augmented(self, batch: Tensor, step: int) -> Tensor:
        """Return the augmented images of a step; raise ValueError if they do not fit the model."""
        if self.steps.augment is None:
            return batch
        shown = self.steps.augment(batch, step)
        came, wanted = type(shown).__name__, f"a torch.Tensor of shape {list(batch.shape)}"
        if isinstance(shown, Tensor):
            # A module may take images of another size; a network on the engine takes only one size.
            fits = shown.shape[:1] == batch.shape[:1]
            fits = fits and (self.model is not None or shown.shape == batch.shape)
            if fits and shown.dtype == batch.dtype and shown.device == batch.device:
                return shown
            came = f"{shown.dtype} of shape {list(shown.shape)} on {shown.device}"
            wanted = f"{batch.dtype} of shape {list(batch.shape)} on {batch.device}"
        raise ValueError(f"trajmatch::unroll: expected augment to return {wanted}, but got {came}")

    def gradient(self, step: int, at: Point) -> Tensor:
        """Return the gradient ``[P]`` of the loss on a step's augmented batch."""
        _, grad = self.student.gradient(at)
        # The adjoint on the engine does not recompute the gradient, so compare the images there.
        if not self.fixed:
            self.fingerprints.record(step, at.images if self.model is None else grad)
        return grad

    def jvp(self, step: int, at: Point, r: Tensor) -> GradientJvp:
        """Return the derivatives of a step's loss and gradients along ``r``."""
        scale = self._tangent_scale
        again, found = self.student.jvp(at, r if scale is None else scale * r)
        if not self.fixed:
            repeated = at.images if self.model is None or again is None else again
            self.fingerprints.record(step, repeated, again=True)
        if scale is None:
            return found
        return GradientJvp._make(None if each is None else each / scale for each in found)

    def forward(
        self, theta: Tensor, images: Tensor, labels: Tensor, lr: Tensor, state: Tensor
    ) -> tuple[Tensor, ...]:
        """Run the steps; return the parameters, the last state and the tensors for the adjoint."""
        trajectory, states, buffer, reached = [], [], None, {}
        momentum, updates = self.steps.optimiser.numbers()[1], self.steps.updates
        self.conditions = replay.Conditions(self.model, theta.device)
        for step, batch in enumerate(self.steps.batches):
            if not self.fixed:
                self.random_states.append(replay.random_state(theta.device))
            shown = self._augmented(images[batch], step)
            grad = self.gradient(step, Point(theta, shown, labels[batch]))
            if updates is None:
                theta, buffer = torch.ops.trajmatch.sgd_step(theta, grad, lr, buffer, momentum)
            else:
                theta, state = updates.step(step, theta, grad, state, lr)
                states.append(state)
            trajectory.append(theta)
            # Without an adjoint only the current step is kept.
            if not self.steps.keep:
                trajectory, states = trajectory[-1:], states[-1:]
            if step + 1 in self.steps.counts:
                reached[step + 1] = theta
        # True if the steps drew random numbers from the global generators. If not, the adjoint does
        # not have to restore the generators in every step.
        self._draws = not self.fixed and self.random_states[0] != replay.random_state(theta.device)
        thetas = torch.stack([reached[count] for count in self.steps.counts])
        # The results are thetas and the last state. The rest, for the adjoint, is theta_1 ..
        # theta_{N-1} and, with updates, the states after the same steps.
        state = theta.new_empty(0) if updates is None else state
        return thetas, state, *trajectory[:-1], *states[:-1]

    def adjoint(self, *problem: Any) -> Gradients:
        """Return the gradients of the inputs; raise RuntimeError if a recomputed step differs."""
        if self.fixed:
            return self._adjoint(*problem)
        device = problem[2].device
        state = replay.random_state(device)
        try:
            with self.conditions.restored():
                found = self._adjoint(*problem)
        finally:
            # The caller's random numbers must not depend on the recomputation.
            replay.restore_random_state(state, device)
        # The check reads numbers from the GPU, which is impossible while a CUDA graph is captured.
        if not (device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
            self.fingerprints.check(self.conditions.eps(problem[2].dtype))
        return found

    def _adjoint(
        self, above: Tensor | None, above_state: Tensor | None, *problem: Tensor
    ) -> Gradients:
        """Walk the steps backwards and sum the gradients."""
        theta0, images, labels, lr, state0, state, *kept = problem
        batches, counts, optimiser, augment, exact, updates, _ = self.steps
        momentum = optimiser.numbers()[1]
        trajectory = (theta0, *kept[: len(batches) - 1])
        states = (state0, *kept[len(batches) - 1 :], state)
        plain = updates is None
        if plain and self.conditions.eps(lr.dtype) > torch.finfo(lr.dtype).eps:
            # Autocast rounds each product. Scaled by lr, the tangent is as large as in a graph of
            # all steps, so that it is rounded in the same way.
            self._tangent_scale = torch.where(lr == 0, torch.ones_like(lr), lr)
        # `adjoint` is the gradient of the outer loss with respect to theta after the step. The
        # gradient of the outer loss with respect to the gradient that the step uses is `lr * r` for
        # plain SGD (the sweep in csrc/core/sgd_step.h) and `r` with updates.
        adjoint = torch.zeros_like(theta0)
        r = torch.zeros_like(adjoint)
        grad_images = torch.zeros_like(images) if images.is_floating_point() else None
        state_adjoint = torch.zeros_like(state0) if above_state is None else above_state
        grad_labels = torch.zeros_like(labels) if labels.is_floating_point() else None
        grad_lr = torch.zeros_like(lr)
        for step in reversed(range(len(batches))):
            # If theta after this step is one of the results, its gradient enters here.
            for row, count in enumerate(counts):
                if count == step + 1 and above is not None:
                    adjoint = adjoint + above[row]
            theta = trajectory[step]
            if updates is None:
                # The gradient with respect to the momentum buffer, divided by lr.
                r = momentum * r - adjoint
            else:
                adjoint, r, state_adjoint, share = updates.adjoint(
                    step, theta, states[step : step + 2], lr, (adjoint, state_adjoint)
                )
                grad_lr = grad_lr + share
            batch = batches[step]
            # Repeat the random draws of this step, such as dropout masks.
            if self._draws:
                replay.restore_random_state(self.random_states[step], adjoint.device)
            # Augment again, now with a graph that takes gradients back to the images.
            with torch.enable_grad():
                raw = images[batch].requires_grad_(grad_images is not None)
                shown = self._augmented(raw, step)
            at = Point(theta, shown.detach(), labels[batch])
            # <gradient, r>, and its gradients with respect to theta (the Hessian times r), images
            # and labels.
            directional, hessian_r, image_share, label_share = self.jvp(step, at, r)
            if grad_images is not None and image_share is not None:
                if augment is not None:
                    (image_share,) = torch.autograd.grad(
                        shown, raw, image_share, materialize_grads=True
                    )
                grad_images.index_add_(0, batch, lr * image_share if plain else image_share)
            if grad_labels is not None and label_share is not None:
                grad_labels.index_add_(0, batch, lr * label_share if plain else label_share)
            # Summed over the steps, <gradient, r> is -<adjoint, buffer>, the gradient of lr. So the
            # momentum buffers need not be kept.
            if plain:
                grad_lr = grad_lr + directional
            # Without this term, the result is TESLA's approximate gradient.
            if exact:
                adjoint = adjoint + (lr * hessian_r if plain else hessian_r)
        return adjoint, grad_images, grad_labels, grad_lr, state_adjoint


class Unroll(torch.autograd.Function):
    """Autograd node of a whole loop, which saves only the tensors that the adjoint needs."""

    @staticmethod
    def forward(loop: Loop, *problem: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of :meth:`Loop.forward`."""
        with replay.twice_differentiable(), explained("unroll"):
            return loop.forward(*(each.detach() for each in problem))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Save the inputs and all outputs except the first one (the returned parameters)."""
        ctx.loop, *problem = inputs
        # Zeros for unused outputs would cost a vector of the size of the parameters per step.
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[2:])
        ctx.save_for_backward(*problem, *output[1:])

    @staticmethod
    def backward(ctx: Any, *above: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients of ``theta0``, images, labels, step sizes and state."""
        return (None, *_Adjoint.apply(ctx.loop, *above[:2], *ctx.saved_tensors))


class _Adjoint(torch.autograd.Function):
    """Separate autograd node for the backward pass, which ``torch.func`` needs; no derivative."""

    @staticmethod
    def forward(loop: Loop, *problem: Any) -> Gradients:
        with replay.twice_differentiable(), explained("unroll"):
            return loop.adjoint(*problem)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Save nothing."""

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> None:
        raise NotImplementedError(
            "trajmatch::unroll has no second derivatives; trajmatch.reference.unroll has "
            "derivatives of any order"
        )
