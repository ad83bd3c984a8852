"""The tasks of the next iteration are made while the device works on those of this one."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_flatten

from trajmatch.data.dsa import DSA
from trajmatch.distill import iteration as iteration_module
from trajmatch.distill.gradients import one_by_one
from trajmatch.distill.iteration import outer_iteration
from trajmatch.distill.objectives import Plan
from trajmatch.distill.objectives.match_trajectory import Match
from trajmatch.distill.problem import prepare


@pytest.mark.parametrize("matches", [1, 2])
def test_the_state_is_as_if_nothing_was_drawn_ahead(configure, matches: int) -> None:
    problem = prepare(configure(matches=matches, iterations=4))
    state, plain = problem.initial_state(), problem.initial_state().draws
    for number in range(4):
        outer_iteration(problem, state)
        for each in range(matches):
            plain.draw(number, each, 6)
        now, wanted = state.random_state, plain.state_dict()
        assert now.keys() == wanted.keys()
        assert all(torch.equal(now[name], value) for name, value in wanted.items())
    assert state.prepared is None


def test_tasks_are_made_between_launch_and_reading(
    configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the device does not wait for draws after the results are read."""
    problem = prepare(configure(dsa="color_crop", iterations=3))
    state, events = problem.initial_state(), []

    def compute(tasks: Any, parameters: Any) -> Any:
        events.append("compute")
        return one_by_one(problem.objective, tasks, parameters, Plan())

    def told(name: str, function: Any, *args: Any) -> Any:
        events.append(name)
        return function(*args)

    monkeypatch.setattr(iteration_module, "read", partial(told, "read", iteration_module.read))
    task, draw = type(problem.objective).task, DSA.draw
    monkeypatch.setattr(type(problem.objective), "task", lambda *args: told("task", task, *args))
    monkeypatch.setattr(DSA, "draw", lambda *args: told("dsa", draw, *args))
    for _ in range(3):
        outer_iteration(problem, state, compute)
    made = ["task", *["dsa"] * problem.config.student_steps]
    assert events == [*made, *["compute", *made, "read"] * 2, "compute", "read"]


def test_a_match_made_on_the_host_is_moved_to_the_device(configure) -> None:
    problem = prepare(configure(dsa="color_crop", balance=True, max_start_epoch=3))
    task: Match = problem.objective.task(problem.initial_state().draws.draw(0, 0, 6))
    assert problem.objective._on_device(task) is task
    there = replace(problem.objective.setup, device=torch.device("meta"))
    moved = replace(problem.objective, setup=there)._on_device(task)
    leaves, structure = tree_flatten(moved)
    assert structure == tree_flatten(task)[1]
    assert {each.device.type for each in leaves if isinstance(each, torch.Tensor)} == {"meta"}
    assert len(moved.batches) == len(task.batches) and moved.augment is not None


@pytest.mark.cuda
def test_a_match_for_a_gpu_lies_in_pinned_memory(configure) -> None:
    problem = prepare(configure(dsa="color_crop", device="cuda"))
    task: Match = problem.objective.task(problem.initial_state().draws.draw(0, 0, 6))
    for each in (task.start, *task.expert.values(), task.indices, task.dsa_rows):
        assert each is not None and each.is_pinned()
