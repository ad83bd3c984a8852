"""What several processes of a run divide, exchange and compare; here in one process."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from trajmatch import networks
from trajmatch.distill.gradients import Graph, gradients_for
from trajmatch.distill.objectives import Results
from trajmatch.distill.parallel import (
    Division,
    check_division,
    check_in_step,
    start_same,
)
from trajmatch.distill.problem import prepare
from trajmatch.errors import UserError
from trajmatch.parallel import ALONE, Ranks

CONVNET = networks.ConvNet(1, 3, 8, 4, 1)


class Fellows(Ranks):
    """One of several processes; the others send the same, changed by a function of their rank."""

    def __init__(self, size: int, changed=lambda tensor, rank: tensor) -> None:
        self.size, self.changed, self.copied = size, changed, 0

    def gather(self, tensor: Tensor) -> list[Tensor]:
        return [self.changed(tensor, rank) if rank else tensor for rank in range(self.size)]

    def broadcast_(self, tensor: Tensor) -> None:
        self.copied += 1


def results(number: int, soft: bool) -> Results:
    """Loss, whether it means something, and gradients of images, step size and labels."""
    images, labels = torch.full((2, 1, 3, 3), float(number)), torch.full((2, 4), number + 0.5)
    step_size = torch.tensor(-number / 3, dtype=torch.float64)
    found = (torch.tensor(0.1 + number), torch.tensor(number != 1), images, step_size)
    return (*found, labels) if soft else found


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("count", [2, 3, 4, 5, 7])
def test_gradients_come_in_the_order_of_the_matches(soft: bool, count: int) -> None:
    size = min(3, count)
    made = [results(number, soft) for number in range(count)]
    sent: list[list[Tensor]] = []

    class Recorder(Fellows):
        def gather(self, tensor: Tensor) -> list[Tensor]:
            sent[-1].append(tensor)
            return [tensor] * size

    for rank in range(size):
        sent.append([])
        recorder = Recorder(size)
        recorder.rank = rank
        Division(recorder).gather(Division(recorder).own(made), count)

    class Player(Fellows):
        calls = 0

        def gather(self, tensor: Tensor) -> list[Tensor]:
            self.calls += 1
            return [each[self.calls - 1] for each in sent]

    found = Division(Player(size)).gather(made[::size], count)
    for one, other in zip(found, made, strict=True):
        assert all(
            a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(one, other, strict=True)
        )


def test_one_process_keeps_its_gradients() -> None:
    made = [results(0, True), results(1, True)]
    assert Division().gather(made, 2) == made
    assert Division(Fellows(2), by_batch=True).gather(made, 2) == made


def test_a_process_without_a_match_is_refused(configure) -> None:
    problem = prepare(configure(matches=3))
    state = problem.initial_state()
    check_division(problem, state, Fellows(3))
    with pytest.raises(UserError, match="each of the 4 processes, but --matches is 3") as error:
        check_division(problem, state, Fellows(4))
    assert "--matches 4" in str(error.value)
    check_division(problem, state, ALONE)


def test_a_process_without_an_image_is_refused(configure) -> None:
    problem = prepare(configure(parallel="batch", batch_syn=4))
    state = problem.initial_state()
    check_division(problem, state, Fellows(4))
    with pytest.raises(UserError, match="batches have 4 images and there are 5 processes"):
        check_division(problem, state, Fellows(5))
    whole = replace(problem, config=configure(parallel="batch", batch_syn=None))
    with pytest.raises(UserError, match="batches have 6 images and there are 7 processes"):
        check_division(whole, state, Fellows(7))


def test_batch_norm_cannot_share_a_batch(configure) -> None:
    problem = prepare(configure(parallel="batch"))
    state = problem.initial_state()
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 3))
    mixed = replace(problem, model=model)
    with pytest.raises(UserError, match="--parallel matches, or experts with another norm"):
        check_division(mixed, state, Fellows(2))
    check_division(replace(mixed, config=configure(matches=2)), state, Fellows(2))
    check_division(replace(mixed, model=model.eval()), state, Fellows(2))


def test_all_begin_the_same_run(configure) -> None:
    problem = prepare(configure(ema=0.5))
    state = problem.initial_state()
    fellows = Fellows(3)
    start_same(problem, state, fellows)
    assert fellows.copied == 6  # images, labels, step size, two momentum buffers, average
    with pytest.raises(UserError, match="processes 0 and 2 of this run have different settings"):
        start_same(problem, state, Fellows(3, lambda tensor, rank: tensor + rank // 2))
    start_same(problem, state, ALONE)


def test_processes_that_drift_apart_are_noticed(configure) -> None:
    problem = prepare(configure())
    state = problem.initial_state()
    check_in_step(state, Fellows(2))
    with pytest.raises(UserError, match="after iteration 0, processes 0 and 1 no longer have"):
        check_in_step(state, Fellows(2, lambda tensor, rank: tensor + 1))


def test_shared_batches_have_no_graph(configure) -> None:
    problem = replace(prepare(configure()), model=CONVNET, device=torch.device("cuda"))
    with pytest.warns(RuntimeWarning, match="--parallel batch exchanges tensors in every"):
        found = gradients_for(problem, Division(Fellows(2), by_batch=True))
    assert not isinstance(found, Graph)
    assert isinstance(gradients_for(problem, Division(ALONE, by_batch=True)), Graph)
    assert isinstance(gradients_for(problem, Division(Fellows(2))), Graph)
