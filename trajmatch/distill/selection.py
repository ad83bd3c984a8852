"""Evaluation during a run, and selection of the iteration whose images become the result."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from trajmatch import interruption
from trajmatch.distill.config import DistillConfig
from trajmatch.distill.problem import Problem
from trajmatch.distill.state import Best, State
from trajmatch.evaluate.scores import evaluate_set
from trajmatch.out_of_memory import retried
from trajmatch.parallel import ALONE, Ranks
from trajmatch.protocol import PROTOCOLS
from trajmatch.random import derive_seed


def is_due(config: DistillConfig, state: State) -> bool:
    """Return True if an evaluation is due: every ``eval_every`` iterations and after the last."""
    if config.eval_every == 0 or state.iteration == 0:
        return False
    # A run may resume from a checkpoint that was saved after the evaluation of its iteration.
    if state.scores and state.scores[-1]["iteration"] == state.iteration:
        return False
    return state.iteration % config.eval_every == 0 or state.iteration == config.iterations


def evaluate_iterate(
    problem: Problem,
    state: State,
    ranks: Ranks = ALONE,
    make_room: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Test networks that are trained on the current images; return numbers for the log.

    The score is added to ``state``. Unless ``select`` is ``last``, the best synthetic set so far is
    kept there as well. Rank 0 evaluates and broadcasts the score. If its memory runs out, it calls
    ``make_room`` and tries again.
    """
    numbers = ranks.on_rank_0(lambda: retried(partial(_score, problem, state), make_room))
    protocol = numbers.pop("protocol")
    state.scores.append({**numbers, "protocol": protocol})
    best, mean = state.best, numbers["mean"]
    # A mean squared error should be low, an accuracy high.
    better = best is None or (
        mean < best.accuracy if problem.dataset.loss == "mse" else mean > best.accuracy
    )
    # A shallow copy suffices, because updates replace the tensors instead of changing them.
    if problem.config.select != "last" and better:
        state.best, state.best_values = Best(state.iteration, mean), dict(state.result)
    return numbers


def _score(problem: Problem, state: State) -> dict[str, Any]:
    """Return the results of an evaluation and its ``protocol``."""
    config = problem.config
    dataset, split = problem.dataset, "test"
    images, labels = dataset.test_images, dataset.test_answers
    # Selection by held-out images leaves the test set for an honest estimate.
    if config.select == "holdout":
        split, (images, labels) = "holdout", problem.held_out
    synthetic = problem.render(state.result)
    paper, dsa = PROTOCOLS[config.eval_protocol], problem.dsa.spec
    protocol = replace(paper, lr=state.step_size, dsa=dsa, epochs=config.eval_epochs)
    with interruption.released():  # may be interrupted: it takes minutes and changes no state
        tested = (problem.training.normalise(images), labels)
        seeds = (config.eval_seeds, derive_seed(config.seed, "distill", "evaluation"))
        score = evaluate_set(*synthetic, problem.network, protocol, *tested, *seeds, problem.device)
    # The log has mean and standard deviation, but not the result of each network.
    numbers = score.as_dict()
    del numbers[score.measure]
    place = {"iteration": state.iteration, "split": split}
    return {**place, **numbers, "protocol": score.protocol}
