"""Several matches in one outer iteration: an outer batch."""

from dataclasses import replace

import pytest
import torch
from stand_ins import Interrupter, gradients_of, lines_of, match_of, results_of

from trajmatch import artifact
from trajmatch.data import DSA
from trajmatch.distill import distill
from trajmatch.distill.iteration import outer_iteration
from trajmatch.distill.objectives import OuterGradient, mean_gradient, student_batches
from trajmatch.distill.parameters import leaves
from trajmatch.distill.problem import Problem, prepare
from trajmatch.distill.state import State
from trajmatch.errors import UserError
from trajmatch.random import derive_seed, generator


def match_by_hand(
    problem: Problem,
    state: State,
    streams: dict[str, torch.Generator],
    order: list[int],
    *names: int,
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
        order.extend(torch.randperm(2, generator=streams["experts"]).tolist())
    expert = order.pop(0)
    epoch = int(torch.randint(0, 3, (), generator=streams["start_epochs"]))
    start, target = (problem.store.snapshot(expert, each) for each in (epoch, epoch + 1))
    batches = student_batches(6, config.batch_syn, config.student_steps, streams["batches"])
    augment = DSA().replay(derive_seed(config.seed, "distill", "dsa", *names))
    match = match_of(start, {1: target}, batches, augment)
    (made,) = gradients_of(problem.objective, [match], leaves(state.parameters, "cpu"))
    return made


@pytest.mark.parametrize("matches", [1, 2, 3])
def test_an_iteration_is_one_step_along_the_mean_of_hand_made_matches(configure, matches) -> None:
    problem = prepare(configure(matches=matches))
    state = problem.initial_state()
    streams = {
        name: generator(0, "distill", name) for name in ("experts", "start_epochs", "batches")
    }
    order: list[int] = []
    for iteration in range(4):
        seeds = [(iteration,), (iteration, 1), (iteration, 2)][:matches]
        made = [match_by_hand(problem, state, streams, order, *names) for names in seeds]
        wanted = {
            name: state.parameters[name].updated(
                sum(each.gradients[name] for each in made) / matches
            )
            for name in ("images", "step_size")
        }
        numbers, fault = outer_iteration(problem, state)
        assert fault is None
        assert numbers["loss"] == sum(each.loss for each in made) / matches
        for name, parameter in wanted.items():
            assert torch.equal(state.parameters[name].value, parameter.value)
            for moment, value in parameter.moments.items():
                assert torch.equal(value, state.parameters[name].moments[moment])
    assert (state.iteration, state.applied) == (4, 4)


def test_the_mean_of_one_match_is_the_match() -> None:
    images = torch.tensor([1.5, -0.0, 3e-45])
    mean = mean_gradient([OuterGradient(0.7, {"images": images})])
    assert (mean.loss, mean.meaningful) == (0.7, True)
    assert mean.gradients["images"].numpy().tobytes() == images.numpy().tobytes()


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
    with pytest.raises(UserError, match="made with matches = 2, but this run has matches = 1"):
        distill(replace(config, matches=1, resume=True))


def test_one_match_that_is_not_finite_spoils_the_update(configure) -> None:
    problem = prepare(configure(matches=2))
    state = problem.initial_state()
    images = state.parameters["images"].value

    def second_poisoned(tasks, parameters):
        one, other = gradients_of(problem.objective, tasks, parameters)
        return results_of([one, replace(other, loss=float("nan"))])

    numbers, fault = outer_iteration(problem, state, second_poisoned)
    assert numbers["refused"] == fault.cause == "the loss is not finite"
    assert torch.equal(state.parameters["images"].value, images)
    assert (state.iteration, state.applied, state.refusals) == (1, 0, 1)


def test_one_expert_that_stands_still_is_seen() -> None:
    moving = OuterGradient(0.5, {"images": torch.zeros(2)})
    still = replace(moving, loss=float("nan"), meaningful=False)
    assert not mean_gradient([moving, still]).meaningful
    assert mean_gradient([moving, moving]).meaningful
