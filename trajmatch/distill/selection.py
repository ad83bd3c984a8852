"""Evaluation during a run, and the choice of the iterate that becomes the result."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from trajmatch import interruption
from trajmatch.distill.config import DistillConfig
from trajmatch.distill.problem import Problem
from trajmatch.distill.state import Best, State
from trajmatch.evaluate.scores import evaluate_set
from trajmatch.parallel import ALONE, Ranks
from trajmatch.protocol import PROTOCOLS
from trajmatch.random import derive_seed


def is_due(config: DistillConfig, state: State) -> bool:
    """Return True if the images should be evaluated now.

    Args:
        config: Says how often.
        state: The state after an iteration.

    Returns:
        True every ``eval_every`` iterations and after the last, unless that has been done.
    """
    if config.eval_every == 0 or state.iteration == 0:
        return False
    if state.scores and state.scores[-1]["iteration"] == state.iteration:
        return False
    return state.iteration % config.eval_every == 0 or state.iteration == config.iterations


def evaluate_iterate(problem: Problem, state: State, ranks: Ranks = ALONE) -> dict[str, Any]:
    """Train fresh networks on the images as they are, and remember the best iterate.

    They are tested on the held-out images for ``--select holdout``, so that the choice knows
    nothing of the test set, and on the test set else.

    Args:
        problem: What the run works on.
        state: Gains a score, and a best iterate if this is the best and one is to be chosen.
        ranks: The processes of the run; rank 0 evaluates and broadcasts the score.

    Returns:
        The numbers for the log.
    """
    numbers = ranks.on_rank_0(lambda: _score(problem, state))
    protocol = numbers.pop("protocol")
    state.scores.append({**numbers, "protocol": protocol})
    best, mean = state.best, numbers["mean"]
    better = best is None or (
        mean < best.accuracy if problem.dataset.loss == "mse" else mean > best.accuracy
    )
    if problem.config.select != "last" and better:
        state.best, state.best_values = Best(state.iteration, mean), dict(state.result)
    return numbers


def _score(problem: Problem, state: State) -> dict[str, Any]:
    """Return the numbers of an evaluation, with its ``protocol``."""
    config = problem.config
    dataset, split = problem.dataset, "test"
    images, labels = dataset.test_images, dataset.test_answers
    if config.select == "holdout":
        split, (images, labels) = "holdout", problem.held_out
    synthetic = problem.render(state.result)
    protocol = replace(
        PROTOCOLS[config.eval_protocol],
        lr=state.step_size,
        dsa=problem.dsa.spec,
        epochs=config.eval_epochs,
    )
    with interruption.released():  # it takes minutes and changes nothing
        score = evaluate_set(
            synthetic.images,
            synthetic.labels,
            problem.network,
            protocol,
            problem.training.normalise(images),
            labels,
            config.eval_seeds,
            derive_seed(config.seed, "distill", "evaluation"),
            problem.device,
        )
    numbers = score.as_dict()
    del numbers[score.measure]
    place = {"iteration": state.iteration, "split": split}
    return {**place, **numbers, "protocol": score.protocol}
