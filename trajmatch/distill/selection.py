"""Evaluation during a run, and selection of the resulting iterate."""

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
    """True every ``eval_every`` iterations and after the last, unless already evaluated."""
    if config.eval_every == 0 or state.iteration == 0:
        return False
    if state.scores and state.scores[-1]["iteration"] == state.iteration:
        return False
    return state.iteration % config.eval_every == 0 or state.iteration == config.iterations


def evaluate_iterate(problem: Problem, state: State, ranks: Ranks = ALONE) -> dict[str, Any]:
    """Train and test fresh networks on the current images, and keep the best iterate.

    The test images are the held-out ones for ``--select holdout``, which keeps the choice
    independent of the test set, and the test set otherwise.

    Args:
        problem: The run's problem.
        state: Gains a score, and a best iterate unless ``--select last``.
        ranks: Processes of the run; rank 0 evaluates and broadcasts the score.

    Returns:
        Numbers for the log.
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
    paper, dsa = PROTOCOLS[config.eval_protocol], problem.dsa.spec
    protocol = replace(paper, lr=state.step_size, dsa=dsa, epochs=config.eval_epochs)
    with interruption.released():  # may be interrupted: it takes minutes and changes no state
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
