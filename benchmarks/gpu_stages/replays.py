"""The outer iteration as ``trajmatch distill`` runs it on a GPU: all its matches as one graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from bench.problem import Problem
from bench.recorders import call_again
from bench.variants import OuterGradient

from gpu_stages.settings import Settings
from trajmatch.data.dsa import DSA
from trajmatch.distill import DistillConfig
from trajmatch.distill.gradients import Graph
from trajmatch.distill.objectives import Plan, read
from trajmatch.distill.objectives.match_trajectory import Match, MatchTrajectory
from trajmatch.distill.objectives.matching import MatchingLoss
from trajmatch.distill.objectives.start import StartEpochWindow
from trajmatch.distill.setup import Setup
from trajmatch.images.pixels import Pixels
from trajmatch.networks.engine import ways_to_measure
from trajmatch.recording import Record, cuda_graph


def record_for(settings: Settings) -> Record:
    """Return the recorder of the device: of a CUDA graph, or on the CPU its stand-in."""
    return cuda_graph if settings.device == "cuda" else call_again


def replayed(
    problem: Problem, record: Record, count: int = 1, plan: Plan | None = None
) -> Callable[[], list[OuterGradient]]:
    """Return an outer iteration of ``count`` equal matches side by side.

    It copies the inputs each time.

    Args:
        problem: What to differentiate.
        record: What records; the second call does, and all later ones replay.
        count: Matches.
        plan: How much memory they may take (default: with no tape).

    Returns:
        Gives the gradients of every match.
    """
    images: Any = SimpleNamespace(train_images=problem.images, loss="cross_entropy")
    setup = Setup(
        config=DistillConfig(experts=Path(), out=Path()),
        experts=None,
        network={},
        dataset=images,
        training=images,
        held_out=(images, images),
        model=problem.model,
        dsa=DSA("none"),
        parametrisation=Pixels(),
        images_per_class=1,
        source=None,
        lr_init=0.01,
        device=problem.images.device,
    )
    window, loss = StartEpochWindow(0, 1), MatchingLoss()
    objective = MatchTrajectory(setup=setup, window=window, loss=loss)
    graph = Graph(objective, record, partial(ways_to_measure, problem.model, setup.device))
    sizes = (problem.batches.shape[1],) * len(problem.batches)
    match = Match(
        start=problem.start,
        expert={1: problem.target},
        sizes=sizes,
        indices=problem.batches.reshape(-1),
        dsa_rows=None,
        loss_scale=torch.ones_like(problem.lr),
        iteration=torch.zeros_like(problem.lr, dtype=torch.int64),
    )
    together = replace(plan or Plan(), tasks=count)
    leaves = {
        "images": problem.images.detach().requires_grad_(),
        "step_size": problem.lr.detach().requires_grad_(),
        "labels": problem.labels,
    }

    def outer_iteration() -> list[OuterGradient]:
        return [
            OuterGradient(
                torch.full_like(problem.lr, each.loss),
                each.gradients["images"],
                torch.full_like(problem.lr, each.gradients["step_size"].item()),
            )
            for each in read(graph([match] * count, leaves, together), leaves)
        ]

    return outer_iteration
