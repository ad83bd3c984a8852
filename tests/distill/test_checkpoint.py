import json
from dataclasses import replace

import pytest
import torch

from trajmatch import files
from trajmatch.distill import checkpoint
from trajmatch.distill.iteration import outer_iteration
from trajmatch.distill.problem import Problem, prepare
from trajmatch.distill.state import Best
from trajmatch.errors import UserError


@pytest.fixture
def run(configure):
    """A problem and its state after three iterations, with a best iterate and a score."""
    problem = prepare(configure())
    state = problem.initial_state()
    for _ in range(3):
        outer_iteration(problem, state)
    state.best, state.best_values = Best(2, 41.5), dict(state.result)
    state.scores.append({"iteration": 2, "mean": 41.5})
    state.refusals = 4
    return problem, state


def asking(problem: Problem, **settings: object) -> Problem:
    return replace(problem, config=replace(problem.config, **settings))


def test_goes_on_as_if_it_had_not_stopped(run, tmp_path) -> None:
    problem, state = run
    checkpoint.save(tmp_path / "c", state, problem.identity)
    restored = checkpoint.load(tmp_path / "c", problem)
    assert restored.step_size == state.step_size
    assert (restored.iteration, restored.applied, restored.refusals) == (3, 3, 4)
    assert restored.scores == state.scores
    assert restored.best == state.best
    assert restored.best_values.keys() == {"images", "labels", "step_size"}
    for name, value in restored.best_values.items():
        assert torch.equal(value, state.best_values[name])
    for _ in range(5):
        assert outer_iteration(problem, restored) == outer_iteration(problem, state)
    for name, parameter in restored.parameters.items():
        assert parameter.optimiser == state.parameters[name].optimiser
        assert torch.equal(parameter.value, state.parameters[name].value)
        for moment, value in parameter.moments.items():
            assert torch.equal(value, state.parameters[name].moments[moment])


def test_same_state_same_bytes(run, tmp_path) -> None:
    problem, state = run
    for name in ("one", "two"):
        checkpoint.save(tmp_path / name, state, problem.identity)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_other_settings_are_refused_and_named(run, tmp_path) -> None:
    problem, state = run
    checkpoint.save(tmp_path / "c", state, problem.identity)
    with pytest.raises(UserError, match=r"made with lr_img = 10.0, but this run has lr_img = 20.0"):
        checkpoint.load(tmp_path / "c", asking(problem, lr_img=20.0))


def test_the_number_of_iterations_may_change(run, tmp_path) -> None:
    problem, state = run
    checkpoint.save(tmp_path / "c", state, problem.identity)
    assert checkpoint.load(tmp_path / "c", asking(problem, iterations=99)).iteration == 3


def test_a_cut_file_is_refused(run, tmp_path) -> None:
    problem, state = run
    path = tmp_path / "c"
    checkpoint.save(path, state, problem.identity)
    whole = path.read_bytes()
    for length in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=str(path)):
            checkpoint.load(path, problem)


@pytest.mark.parametrize(
    "lost", ["value.images", "velocity.step_size", "draws.experts_left", "draws.batches"]
)
def test_a_lost_tensor_is_refused(run, tmp_path, lost) -> None:
    problem, state = run
    path = tmp_path / "c"
    checkpoint.save(path, state, problem.identity)
    tensors, description = files.load_tensors(path)
    del tensors[lost]
    files.save_tensors(path, tensors, description)
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load(path, problem)


@pytest.mark.parametrize(
    "change",
    [
        {"identity": []},
        {"progress": None},
        {"progress": {"best": {"x": 1}}},
        {"progress": {"iteration": "3"}},
        {"progress": {"applied": -1}},
        {"progress": {"scores": [1]}},
        {"progress": {"gradient_norms": [-1.0]}},
    ],
)
def test_a_wrong_description_is_refused(run, tmp_path, change) -> None:
    problem, state = run
    path = tmp_path / "c"
    checkpoint.save(path, state, problem.identity)
    tensors, description = files.load_tensors(path)
    files.save_tensors(path, tensors, {**description, **change})
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load(path, problem)


def test_a_file_of_another_kind_is_refused(run, tmp_path) -> None:
    files.save_tensors(tmp_path / "c", {"images": torch.zeros(1)}, {"format": "something"})
    with pytest.raises(UserError, match="not a checkpoint"):
        checkpoint.load(tmp_path / "c", run[0])


def test_identity_holds_no_path(run, tmp_path) -> None:
    problem, _ = run
    assert str(tmp_path.parent.parent) not in json.dumps(problem.identity)
