"""The outer iteration as ``trajmatch distill`` runs it on a GPU: all its matches as one graph."""

from __future__ import annotations

from collections.abc import Callable

import torch
from bench.problem import Problem
from bench.variants import OuterGradient

from gpu_stages.settings import Settings
from trajmatch.distill.graph import MatchGraph
from trajmatch.distill.initialise import SyntheticSet
from trajmatch.distill.matching import MatchingLoss, Segment
from trajmatch.distill.outer import Match, StudentSteps
from trajmatch.recording import Record, call_again, cuda_graph


def record_for(settings: Settings) -> Record:
    """What records on the device: a CUDA graph, or on the CPU its stand-in."""
    return cuda_graph if settings.device == "cuda" else call_again


def replayed(
    problem: Problem, record: Record, count: int = 1, steps: StudentSteps | None = None
) -> Callable[[], list[OuterGradient]]:
    """An outer iteration of some matches, all the same, with the inputs copied each time.

    Args:
        problem: What to differentiate.
        record: What records; the second call does, and all later ones replay.
        count: Matches.
        steps: How the student's steps are taken (default: with no tape).

    Returns:
        Gives the gradients of every match.
    """
    graph, chosen = MatchGraph(record), steps or StudentSteps()
    segment = Segment(problem.start, problem.target)
    matches = [Match(segment, problem.batches.unbind(0), None)] * count
    synthetic, lr = SyntheticSet(problem.images, problem.labels), float(problem.lr)

    def outer_iteration() -> list[OuterGradient]:
        found = graph(problem.model, matches, synthetic, lr, steps=chosen, loss=MatchingLoss())
        return [
            OuterGradient(
                torch.full_like(problem.lr, each.loss),
                each.images,
                torch.full_like(problem.lr, each.step_size),
            )
            for each in found
        ]

    return outer_iteration
