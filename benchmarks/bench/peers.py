"""Adam's unrolled loop in the libraries that differentiate through optimisers, if installed."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from bench.problem import Problem
from bench.variants import quiet
from trajmatch import reference


def installed() -> dict[str, Callable[[Problem], tuple[Tensor, ...]]]:
    """Return the gradient in the images as each library that is installed computes it, by name."""
    found = {}
    for name, run in (("higher", _higher), ("torchopt", _torchopt)):
        try:
            with quiet():
                importlib.import_module(name)
        except ImportError:
            continue
        found[name] = run
    return found


def _higher(problem: Problem) -> tuple[Tensor, ...]:
    higher: Any = importlib.import_module("higher")
    model, images = _student(problem), problem.images.detach().requires_grad_()
    adam = torch.optim.Adam(model.parameters(), lr=problem.lr.item())
    with higher.innerloop_ctx(model, adam) as (student, optimiser):
        for batch in problem.batches:
            optimiser.step(cross_entropy(student(images[batch]), problem.labels[batch]))
        return _gradient(problem, student.parameters(), images)


def _torchopt(problem: Problem) -> tuple[Tensor, ...]:
    torchopt: Any = importlib.import_module("torchopt")
    model, images = _student(problem), problem.images.detach().requires_grad_()
    optimiser = torchopt.MetaAdam(model, lr=problem.lr.item())
    for batch in problem.batches:
        optimiser.step(cross_entropy(model(images[batch]), problem.labels[batch]))
    return _gradient(problem, model.parameters(), images)


def _student(problem: Problem) -> torch.nn.Module:
    """Return a network of its own, since torchopt puts others than leaves into it."""
    model = copy.deepcopy(problem.model)
    vector_to_parameters(problem.start, model.parameters())
    return model


def _gradient(problem: Problem, end: Any, images: Tensor) -> tuple[Tensor, ...]:
    loss = reference.param_distance(parameters_to_vector(end), problem.target, problem.start)
    return torch.autograd.grad(loss, (images,))
