"""Evaluation during a run, and the choice of the iterate that becomes the result."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from torch import Tensor

from trajmatch.distill.config import DistillConfig
from trajmatch.distill.problem import Problem
from trajmatch.distill.state import Iterate, State
from trajmatch.errors import UserError
from trajmatch.evaluate.scores import evaluate_set
from trajmatch.random import derive_seed


def is_due(config: DistillConfig, iteration: int) -> bool:
    """Whether an evaluation follows this iteration: every so many, and after the last."""
    if config.eval_every == 0:
        return False
    return iteration % config.eval_every == 0 or iteration == config.iterations


def evaluate_iterate(problem: Problem, state: State) -> dict[str, Any]:
    """Trains fresh networks on the images as they are, and remembers the best iterate.

    They are tested on the held-out images for ``--select holdout``, so that the choice knows
    nothing of the test set, and on the test set else.

    Args:
        problem: What the run works on.
        state: Gains a score, and a best iterate if this is the best and one is to be chosen.

    Returns:
        What the log shall have.
    """
    config = problem.config
    split, images, labels = _test_split(problem)
    score = evaluate_set(
        state.synthetic.images,
        state.synthetic.labels,
        problem.store.manifest["network"],
        state.step_size.value,
        problem.training.normalise(images),
        labels,
        seeds=config.eval_seeds,
        seed=derive_seed(config.seed, "distill", "evaluation"),
        epochs=config.eval_epochs,
        dsa=problem.dsa.spec,
        device=problem.device,
    )
    mean, std = _finite_or_none(score.mean), _finite_or_none(score.std)
    numbers = {"iteration": state.iteration, "split": split, "mean": mean, "std": std}
    state.scores.append({**numbers, "seeds": score.seeds, "protocol": score.protocol})
    if config.select != "last" and mean is not None:
        best = None if state.best is None else state.best.accuracy
        if best is None or mean > best:
            state.best = replace(state.iterate, accuracy=mean)
    return numbers


def chosen_iterate(config: DistillConfig, state: State) -> Iterate:
    """The iterate that becomes the result.

    Args:
        config: Says how it is chosen.
        state: The state after the last iteration.

    Returns:
        Images and step size.

    Raises:
        UserError: One is to be chosen by accuracy, and no network could be trained on any.
    """
    if config.select == "last":
        return state.iterate
    if state.best is None:
        raise UserError(
            f"--select {config.select} found nothing to choose: training diverged on every iterate "
            f"that was evaluated (step size {state.step_size.value:.4g}); lower --lr-lr"
        )
    return state.best


def _test_split(problem: Problem) -> tuple[str, Tensor, Tensor]:
    if problem.config.select == "holdout":
        return "holdout", *problem.held_out
    return "test", problem.dataset.test_images, problem.dataset.test_labels


def _finite_or_none(value: float) -> float | None:
    """A network that diverged has no accuracy, and JSON has no word for NaN."""
    return value if math.isfinite(value) else None
