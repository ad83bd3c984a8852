from pathlib import Path

import pytest
import torch
from torch import Tensor

from trajmatch.distill import DistillConfig
from trajmatch.distill.objectives.match_trajectory import Draws
from trajmatch.distill.objectives.start import StartEpochWindow
from trajmatch.errors import UserError
from trajmatch.random import generator


def test_window_draws_every_epoch_but_the_end() -> None:
    draw = generator(0, "test")
    drawn = [StartEpochWindow(2, 5).draw(0, draw) for _ in range(300)]
    counts = torch.bincount(torch.tensor(drawn), minlength=6)
    assert counts[:2].sum() == 0 and counts[5] == 0
    assert counts[2:5].min() > 70  # 100 expected, standard deviation 8


def test_window_of_one_epoch() -> None:
    assert StartEpochWindow(3, 4).draw(0, generator(0)) == 3


@pytest.mark.parametrize(
    ("iteration", "end"),
    # T = 10, T+ = 20, E = 1000: one epoch more every 100 iterations
    [(0, 10), (99, 10), (100, 11), (550, 15), (999, 19), (1000, 20), (10**6, 20)],
)
def test_growing_window(iteration: int, end: int) -> None:
    assert StartEpochWindow(0, 20, 10, 1000).end(iteration) == end
    assert StartEpochWindow(0, 20).end(iteration) == 20


def test_growing_window_draws_what_it_has_reached() -> None:
    window, draw = StartEpochWindow(1, 9, 3, 60), generator(0, "growing")
    for iteration, wanted in ((0, {1, 2}), (30, {1, 2, 3, 4, 5}), (60, set(range(1, 9)))):
        assert {window.draw(iteration, draw) for _ in range(200)} == wanted


def test_epochs_in_between_are_needed_too() -> None:
    window = StartEpochWindow(0, 1)
    window.check([0, 3], [3])
    with pytest.raises(UserError, match="missing: 2"):
        window.check([0, 1, 3], [1, 2, 3])


@pytest.mark.parametrize(
    ("window", "expert_epochs", "kept"),
    [
        (StartEpochWindow(0, 3), 2, range(5)),
        (StartEpochWindow(2, 3), 2, [0, 2, 4]),
    ],
)
def test_window_inside_the_store(window, expert_epochs, kept) -> None:
    window.check(list(kept), [expert_epochs])


@pytest.mark.parametrize(
    ("window", "kept", "missing"),
    [
        (StartEpochWindow(0, 4), list(range(5)), "missing: 5"),
        (StartEpochWindow(0, 3), [0, 2, 4], "missing: 1, 3"),
        (StartEpochWindow(10, 14), list(range(11)), "missing: 11-15"),
    ],
)
def test_window_outside_the_store_names_epochs_and_flags(window, kept, missing) -> None:
    with pytest.raises(UserError) as error:
        window.check(kept, [2])
    message = str(error.value)
    assert missing in message
    assert f"--max-start-epoch {window.maximum} with --expert-epochs 2" in message
    assert f"{window.maximum - 1} + 2 = {window.maximum + 1}" in message


def draws(num_experts: int) -> Draws:
    settings = DistillConfig(out=Path(), experts=Path(), batch_syn=4, student_steps=5)
    return Draws(settings, num_experts, StartEpochWindow(0, 3))


def test_experts_come_once_each_in_changing_order() -> None:
    stream = draws(5)
    rounds = [[stream.draw(0, 0, 6).expert for _ in range(5)] for _ in range(4)]
    assert all(sorted(experts) == list(range(5)) for experts in rounds)
    assert len(set(map(tuple, rounds))) > 1


def test_draws_go_on_from_the_middle() -> None:
    one, other = draws(4), draws(4)
    for _ in range(6):
        one.draw(0, 0, 6)
    other.load_state_dict(one.state_dict())
    for _ in range(9):
        first, second = one.draw(0, 0, 6), other.draw(0, 0, 6)
        assert first.logged() == second.logged()
        assert [*map(Tensor.tolist, first.batches)] == [*map(Tensor.tolist, second.batches)]
