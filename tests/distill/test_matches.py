"""Several matches in one outer iteration: an outer batch."""

from dataclasses import replace

import pytest
import torch
from stand_ins import Interrupter, lines_of

from trajmatch import artifact
from trajmatch.data import DSA
from trajmatch.distill import distill, outer
from trajmatch.distill.batches import student_batches
from trajmatch.distill.loop import outer_iteration
from trajmatch.distill.matching import MatchingLoss
from trajmatch.distill.outer import (
    Match,
    OuterGradient,
    StudentSteps,
    mean_gradient,
    outer_gradient,
    propose_update,
)
from trajmatch.distill.problem import Problem, prepare
from trajmatch.distill.state import State, Streams
from trajmatch.errors import UserError
from trajmatch.random import derive_seed


def match_by_hand(
    problem: Problem, state: State, streams: Streams, order: list[int], *names: int
) -> OuterGradient:
    """One match from draws made here; ``order`` holds the experts that are left of a permutation.

    Args:
        problem: Gives store and configuration.
        state: Gives images and step size.
        streams: Drawn from.
        order: Changed.
        names: Of the augmentation's seed.
    """
    config = problem.config
    if not order:
        order.extend(torch.randperm(2, generator=streams.experts).tolist())
    segment = problem.segment(
        order.pop(0), int(torch.randint(0, 3, (), generator=streams.start_epochs)), state.iteration
    )
    match = Match(
        segment,
        student_batches(6, config.batch_syn, config.student_steps, streams.batches),
        DSA().replay(derive_seed(config.seed, "distill", "dsa", *names)),
    )
    return outer_gradient(
        problem.model,
        match,
        state.synthetic,
        state.step_size.value,
        steps=StudentSteps(config.student_momentum),
        loss=MatchingLoss(),
    )


@pytest.mark.parametrize("matches", [1, 2, 3])
def test_an_iteration_is_one_step_along_the_mean_of_hand_made_matches(configure, matches) -> None:
    problem = prepare(configure(matches=matches))
    state = problem.initial_state()
    streams, order = Streams.of_seed(0), []
    for iteration in range(4):
        seeds = [(iteration,), (iteration, 1), (iteration, 2)][:matches]
        made = [match_by_hand(problem, state, streams, order, *names) for names in seeds]
        mean = OuterGradient(
            loss=sum(each.loss for each in made) / matches,
            images=sum(each.images for each in made) / matches,
            step_size=sum(each.step_size for each in made) / matches,
            stands_still=False,
        )
        wanted = propose_update(state, mean, problem.config)
        numbers, fault = outer_iteration(problem, state)
        assert fault is None
        assert numbers["loss"] == mean.loss
        assert torch.equal(state.synthetic.images, wanted.images)
        assert torch.equal(state.buffer, wanted.buffer)
        assert state.step_size == wanted.step_size
    assert (state.iteration, state.applied) == (4, 4)


def test_the_mean_of_one_match_is_the_match() -> None:
    images = torch.tensor([1.5, -0.0, 3e-45])
    only = OuterGradient(loss=0.7, images=images, step_size=-0.3, stands_still=False)
    mean = mean_gradient([only])
    assert (mean.loss, mean.step_size, mean.stands_still) == (0.7, -0.3, False)
    assert mean.images.numpy().tobytes() == images.numpy().tobytes()


def test_the_log_has_every_match(configure) -> None:
    config = configure(matches=3, iterations=4)
    distill(config)
    log = lines_of(config.log_path)
    assert set(log[0]) == {
        "iteration",
        "loss",
        "losses",
        "step_size",
        "start_epochs",
        "experts",
        "refused",
        "seconds",
    }
    for line in log:
        assert line["loss"] == sum(line["losses"]) / 3
        assert len(line["losses"]) == len(line["start_epochs"]) == len(line["experts"]) == 3
    experts = [expert for line in log for expert in line["experts"]]
    assert all(sorted(experts[at : at + 2]) == [0, 1] for at in range(0, 12, 2))


def test_an_interrupted_run_goes_on_with_equal_bytes(configure, tmp_path) -> None:
    whole = configure(matches=2, out=tmp_path / "whole" / "d")
    distill(whole)
    part = configure(matches=2, out=tmp_path / "part" / "d")
    with pytest.raises(KeyboardInterrupt):
        distill(part, Interrupter(5))  # its last checkpoint is of iteration 4
    distill(replace(part, resume=True))
    assert part.out.read_bytes() == whole.out.read_bytes()


def test_the_number_is_part_of_the_recipe(configure, tmp_path) -> None:
    config = configure(matches=2)
    distill(config)
    assert artifact.load(config.out).recipe["matches"] == 2
    with pytest.raises(UserError, match="made with matches = 2, but matches = 1 is asked"):
        distill(replace(config, matches=1, resume=True))


def test_one_match_that_is_not_finite_spoils_the_update(configure, monkeypatch) -> None:
    problem = prepare(configure(matches=2))
    state = problem.initial_state()
    images = state.synthetic.images
    calls = 0

    def poisoned_every_second(*args, **kwargs):
        nonlocal calls
        calls += 1
        gradient = outer_gradient(*args, **kwargs)
        return gradient if calls % 2 else replace(gradient, loss=float("nan"))

    monkeypatch.setattr(outer, "outer_gradient", poisoned_every_second)
    numbers, fault = outer_iteration(problem, state)
    assert numbers["refused"] == fault.cause == "the matching loss is not finite"
    assert torch.equal(state.synthetic.images, images)
    assert (state.iteration, state.applied, state.refusals) == (1, 0, 1)


def test_one_expert_that_stands_still_is_seen() -> None:
    images = torch.zeros(2)
    moving = OuterGradient(loss=0.5, images=images, step_size=0.0, stands_still=False)
    still = OuterGradient(loss=float("nan"), images=images, step_size=0.0, stands_still=True)
    assert mean_gradient([moving, still]).stands_still
    assert not mean_gradient([moving, moving]).stands_still
