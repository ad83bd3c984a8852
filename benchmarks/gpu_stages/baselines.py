"""One outer iteration by other means: what ``trajmatch.ops`` is measured against.

All of them take the same :class:`Problem` and give the gradients of the matching loss in the
images and in the step size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trajmatch import networks, ops, random, reference
from trajmatch.distill.graph import MatchGraph
from trajmatch.distill.initialise import SyntheticSet
from trajmatch.distill.matching import Segment
from trajmatch.distill.outer import Match, StudentSteps
from trajmatch.recording import Record

Gradients = tuple[Tensor, Tensor]
Implementation = Callable[[], Gradients]


@dataclass(frozen=True)
class Problem:
    """One outer iteration: ``N`` steps on batches of all images.

    Attributes:
        model: The student's network.
        theta: Where it starts. ``[P]``.
        target: What it should reach. ``[P]``.
        images: ``[B, C, H, W]``.
        labels: ``[B]``, int64.
        lr: Step size. ``[]``.
        batches: ``[N, B]``, int64.
    """

    model: nn.Module
    theta: Tensor
    target: Tensor
    images: Tensor
    labels: Tensor
    lr: Tensor
    batches: Tensor

    @classmethod
    def of_size(
        cls,
        width: int,
        batch: int,
        steps: int,
        device: str,
        *,
        image_size: int = 32,
        depth: int = 3,
        dtype: torch.dtype = torch.float32,
    ) -> Problem:
        """Random numbers; the target lies as far away as an expert goes."""
        model = networks.ConvNet(3, 10, image_size, width=width, depth=depth)
        networks.initialise(model, random.generator(0, "gpu_check", "outer", "network"))
        theta = networks.flat_parameters(model)
        draw = random.generator(0, "gpu_check", "outer")
        target = theta + 0.01 * torch.randn(len(theta), generator=draw)
        images = torch.randn(batch, 3, image_size, image_size, generator=draw)
        return cls(
            model.to(device, dtype),
            theta.to(device, dtype),
            target.to(device, dtype),
            images.to(device, dtype),
            torch.arange(batch, device=device) % 10,
            torch.tensor(0.01, device=device, dtype=dtype),
            torch.arange(batch, device=device).repeat(steps, 1),
        )

    def with_channels_last(self) -> Problem:
        """The same with images whose channels lie together."""
        return replace(self, images=self.images.contiguous(memory_format=torch.channels_last))


def trajmatch(problem: Problem) -> Implementation:
    """Ours."""
    return _by_autograd(ops, problem)


def trajmatch_graph(problem: Problem, record: Record) -> Implementation:
    """Ours as :func:`trajmatch.distill.distill` runs it on a GPU, with the inputs copied each time.

    Args:
        problem: What to differentiate.
        record: What records; the second call does, and all later ones replay.
    """
    graph = MatchGraph(record)
    match = Match(Segment(problem.theta, problem.target), problem.batches.unbind(0), None)
    synthetic = SyntheticSet(problem.images.detach(), problem.labels)
    lr = float(problem.lr.detach())

    def outer_iteration() -> Gradients:
        (gradient,) = graph(problem.model, [match], synthetic, lr, steps=StudentSteps())
        return gradient.images, torch.full_like(problem.lr, gradient.step_size)

    return outer_iteration


def eager_unroll(problem: Problem) -> Implementation:
    """The graph of all steps in eager PyTorch, differentiated twice: what the papers' code does."""
    return _by_autograd(reference, problem)


def func_adjoint(problem: Problem) -> Implementation:
    """The adjoint of the steps, each differentiated by ``torch.func`` in eager PyTorch."""
    gradient, tangent = _step_functions(problem)
    return lambda: _adjoint(problem, gradient, tangent)


def compiled_adjoint(problem: Problem, **compile_options: Any) -> Implementation:
    """The same with both functions of a step compiled.

    Args:
        problem: What to differentiate.
        compile_options: For ``torch.compile``, e.g. ``mode="reduce-overhead"`` for CUDA graphs.
    """
    gradient, tangent = (
        torch.compile(function, fullgraph=True, **compile_options)
        for function in _step_functions(problem)
    )
    return lambda: _adjoint(problem, gradient, tangent)


def _by_autograd(operators: Any, problem: Problem) -> Implementation:
    images, lr = problem.images.requires_grad_(), problem.lr.requires_grad_()

    def outer_iteration() -> Gradients:
        end = operators.unroll(
            problem.model, problem.theta, images, problem.labels, lr, problem.batches
        )
        loss = operators.param_distance(end, problem.target, problem.theta)
        grad_images, grad_lr = torch.autograd.grad(loss, (images, lr))
        return grad_images, grad_lr

    return outer_iteration


def _step_functions(problem: Problem) -> tuple[Callable[..., Tensor], Callable[..., Any]]:
    """Gradient of a step, and the derivative of loss and gradients along a direction ``r``."""

    def loss(theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(networks.call_flat(problem.model, theta, images), labels)

    gradient = torch.func.grad(loss)
    gradients = torch.func.grad_and_value(loss, argnums=(0, 1))

    def tangent(theta: Tensor, images: Tensor, labels: Tensor, r: Tensor) -> Any:
        """``(H r, derivative of the images' gradient), <gradient, r>``."""
        return torch.func.jvp(lambda moved: gradients(moved, images, labels), (theta,), (r,))[1]

    return gradient, tangent


def _adjoint(
    problem: Problem, gradient: Callable[..., Tensor], tangent: Callable[..., Any]
) -> Gradients:
    images, labels, lr = problem.images.detach(), problem.labels, problem.lr.detach()
    with torch.no_grad():
        theta, trajectory = problem.theta, []
        for batch in problem.batches:
            trajectory.append(theta)
            theta = theta - lr * gradient(theta, images[batch], labels[batch])
        adjoint = 2 * (theta - problem.target)
        adjoint = adjoint / (problem.theta - problem.target).square().sum()
        grad_images, grad_lr = torch.zeros_like(images), torch.zeros_like(lr)
        for theta, batch in zip(reversed(trajectory), problem.batches.flip(0), strict=True):
            (hessian, share), directional = tangent(theta, images[batch], labels[batch], -adjoint)
            grad_images.index_add_(0, batch, lr * share)
            grad_lr = grad_lr + directional
            adjoint = adjoint + lr * hessian
    return grad_images, grad_lr
