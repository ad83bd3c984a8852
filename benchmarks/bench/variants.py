"""The outer iteration as trajmatch computes it, and as PyTorch can: the baselines.

Each variant is a function from a problem to the loss and its gradients, in float32, with the same
mathematics: plain SGD steps, the matching loss, the exact gradient in images and step size.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import grad, jvp

from bench.problem import Problem
from trajmatch import ops, reference


class OuterGradient(NamedTuple):
    """The matching loss ``[]`` and its gradients in images ``[B, C, H, W]`` and step ``[]``."""

    loss: Tensor
    images: Tensor
    lr: Tensor


Variant = Callable[[Problem], OuterGradient]

#: Ours: without and with a tape of activations.
OURS = ("trajmatch", "trajmatch_tape")

#: Variants of each baseline; the fastest one counts.
BASELINES = {
    "eager_unroll": ("eager_unroll_nchw", "eager_unroll_nhwc"),
    "func_adjoint": ("func_adjoint",),
    "compiled_adjoint": ("compiled_adjoint",),
}

#: Memory that the variant with a tape may keep activations in.
TAPE_BYTES = 2 * 2**30


def trajmatch(problem: Problem, tape_bytes: int = 0, **settings: Any) -> OuterGradient:
    """Ours: the fused engine, with its adjoint; more settings of the loop by name."""
    images, lr = problem.images.detach().requires_grad_(), problem.lr.detach().requires_grad_()
    end = ops.unroll(
        problem.model,
        problem.start,
        images,
        problem.labels,
        lr,
        problem.batches,
        tape_bytes=tape_bytes,
        **settings,
    )
    loss = ops.param_distance(end, problem.target, problem.start)
    return OuterGradient(loss.detach(), *torch.autograd.grad(loss, (images, lr)))


def eager_unroll(problem: Problem, layout: torch.memory_format, **settings: Any) -> OuterGradient:
    """The method of the papers' scripts: the graph of all steps, differentiated a second time."""
    images = problem.images.contiguous(memory_format=layout).detach().requires_grad_()
    lr = problem.lr.detach().requires_grad_()
    end = reference.unroll(
        problem.model,
        problem.start,
        images,
        problem.labels,
        lr,
        problem.batches,
        **settings,
    )
    loss = reference.param_distance(end, problem.target, problem.start)
    return OuterGradient(loss.detach(), *torch.autograd.grad(loss, (images, lr)))


def func_adjoint(problem: Problem) -> OuterGradient:
    """The adjoint method on ``torch.func``, eager: forward over reverse mode, a step at a time."""
    return _adjoint(problem, student_step, adjoint_step)


def compiled_adjoint(problem: Problem, backend: str = "inductor") -> OuterGradient:
    """The same two step functions under ``torch.compile``.

    Inductor chooses the memory layout of the convolutions itself. On a GPU each step is a CUDA
    graph.

    Raises:
        RuntimeError: ``torch.compile`` does not work here, for want of a C++ compiler for example.
    """
    mode = "reduce-overhead" if problem.images.is_cuda and backend == "inductor" else None
    shape = (*problem.start.shape, *problem.images.shape)
    return _adjoint(problem, *_compiled_steps(shape, backend, mode))


def student_step(
    model: nn.Module, theta: Tensor, images: Tensor, labels: Tensor, lr: Tensor
) -> Tensor:
    """``theta - lr * gradient``. ``[P]``."""
    return theta - lr * grad(partial(_loss, model))(theta, images, labels)


def adjoint_step(
    model: nn.Module, theta: Tensor, images: Tensor, labels: Tensor, lr: Tensor, adjoint: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Adjoint of :func:`student_step`: what it adds for ``lr`` and ``images``, and for ``theta``.

    With ``r = -adjoint`` and the directional derivatives along ``r`` of loss, parameter gradient
    and image gradient, ``(d, h, u)``: ``d``, ``lr * u`` and ``adjoint + lr * h``.
    """

    def gradients(theta: Tensor) -> tuple[Tensor, Tensor]:
        return grad(partial(_loss, model), argnums=(0, 1))(theta, images, labels)

    # torch's annotation allows a third result, which only has_aux gives
    (gradient, _), (hessian_r, image_share) = jvp(gradients, (theta,), (-adjoint,))  # type: ignore[misc]
    return -gradient.dot(adjoint), lr * image_share, adjoint + lr * hessian_r


def _loss(model: nn.Module, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    return reference.loss_value(model, theta, images, labels, "cross_entropy")


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings of PyTorch about itself when ``torch.func`` and ``torch.compile`` begin."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@quiet()
def _adjoint(
    problem: Problem,
    step: Callable[..., Tensor],
    step_back: Callable[..., tuple[Tensor, Tensor, Tensor]],
) -> OuterGradient:
    """All steps, and back through them; keeps the parameters of each and nothing else."""
    model, lr = problem.model, problem.lr
    # A CUDA graph writes its result where the last one is: what is kept is cloned. The parameters
    # are not rows of one matrix, because the compiler fails on a view with a tangent.
    trajectory = [problem.start]
    for batch in problem.batches:
        theta = step(model, trajectory[-1], problem.images[batch], problem.labels[batch], lr)
        trajectory.append(theta.clone())
    distance = trajectory[-1] - problem.target
    travelled = (problem.start - problem.target).square().sum()
    adjoint = 2 * distance / travelled
    grad_images, grad_lr = torch.zeros_like(problem.images), torch.zeros_like(lr)
    for index in reversed(range(problem.size.steps)):
        batch = problem.batches[index]
        directional, image_share, new_adjoint = step_back(
            model, trajectory[index], problem.images[batch], problem.labels[batch], lr, adjoint
        )
        grad_lr += directional
        grad_images.index_add_(0, batch, image_share)
        adjoint.copy_(new_adjoint)
    return OuterGradient(distance.square().sum() / travelled, grad_images, grad_lr)


@lru_cache(maxsize=1)
def _compiled_steps(
    shape: tuple[int, ...], backend: str, mode: str | None
) -> tuple[Callable[..., Tensor], Callable[..., tuple[Tensor, Tensor, Tensor]]]:
    """Both steps, to be compiled for one shape.

    Each shape begins anew and may not break the graph: beyond a number of shapes, ``torch.compile``
    would otherwise run the next ones eagerly, as if they were compiled.
    """
    torch.compiler.reset()
    compiled = partial(torch.compile, fullgraph=True, dynamic=False, backend=backend, mode=mode)
    return compiled(student_step), compiled(adjoint_step)


def first_line(error: BaseException) -> str:
    """Return an exception in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


#: All variants by the names that they have in records.
VARIANTS: dict[str, Variant] = {
    "trajmatch": trajmatch,
    "trajmatch_tape": partial(trajmatch, tape_bytes=TAPE_BYTES),
    "eager_unroll_nchw": partial(eager_unroll, layout=torch.contiguous_format),
    "eager_unroll_nhwc": partial(eager_unroll, layout=torch.channels_last),
    "func_adjoint": func_adjoint,
    "compiled_adjoint": compiled_adjoint,
}

#: For smoke tests: the same graph is traced, and no C++ compiler runs.
TRACED_VARIANTS: dict[str, Variant] = {
    **VARIANTS,
    "compiled_adjoint": partial(compiled_adjoint, backend="aot_eager"),
}
