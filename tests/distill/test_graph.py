"""The graph of an outer iteration: recorded by a stand-in that calls functions, and on a GPU."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bench.recorders import call_again
from stand_ins import Counting, gradients_of, match_of, objective_of
from torch import Tensor
from torch.utils._pytree import tree_map_only

from trajmatch import networks, ops
from trajmatch.data.dsa import DSA
from trajmatch.distill import distill, loop
from trajmatch.distill.gradients import Graph, gradients_for
from trajmatch.distill.objectives import OuterGradient, Plan, read, student_batches
from trajmatch.distill.objectives.match_trajectory import Match, MatchTrajectory
from trajmatch.distill.objectives.matching import MatchingLoss
from trajmatch.distill.terms import find_term
from trajmatch.errors import UserError
from trajmatch.random import generator
from trajmatch.recording import Record, cuda_graph

LOSS = MatchingLoss((find_term("final"), find_term("intermediate")), epochs=2)


def objective_on(device: str = "cpu") -> MatchTrajectory:
    model = networks.ConvNet(1, 3, image_size=8, width=4, depth=2).to(device)
    return objective_of(model, LOSS, student_momentum=0.9)


OBJECTIVE = objective_on()


def drawn(
    number: int,
    *,
    together: int = 1,
    count: int = 7,
    steps: int = 4,
    soft: bool = False,
    augmented: bool = False,
    device: str = "cpu",
    objective: MatchTrajectory = OBJECTIVE,
) -> tuple[list[Match], dict[str, Tensor], Plan]:
    """Arguments of ``one_by_one`` beside the objective; other numbers every time."""
    draw = generator(number, "matches")
    images = torch.randn(count, 1, 8, 8, generator=draw)
    labels = torch.randn(count, 3, generator=draw) if soft else torch.arange(count) % 3
    tasks = []
    for index in range(together):
        theta = networks.flat_parameters(networks.initialise(objective.setup.model, draw)).to(
            device
        )
        target, middle = (
            theta + (0.05 * torch.randn(len(theta), generator=draw)).to(device) for _ in "ab"
        )
        batches = [batch.to(device) for batch in student_batches(count, 3, steps, draw)]
        augment = DSA().replay(10 * number + index) if augmented else None
        expert, kappa = {1: middle, 2: target}, 0.8 + 0.1 * number
        tasks.append(match_of(theta, expert, batches, augment, kappa))
    parameters = {"images": images, "step_size": torch.tensor(0.02 + 0.01 * number).double()}
    leaves = {name: each.to(device).requires_grad_() for name, each in parameters.items()}
    return tasks, {**leaves, "labels": labels.to(device).requires_grad_(soft)}, Plan(tasks=together)


class Reading:
    """A graph whose results are read at once."""

    def __init__(self, objective: MatchTrajectory, record: Record) -> None:
        self._graph = Graph(objective, record)

    @property
    def recorded(self) -> bool:
        return self._graph.replayed.recorded

    def __call__(
        self, tasks: list[Match], parameters: Mapping[str, Tensor], plan: Plan
    ) -> list[OuterGradient]:
        return read(self._graph(tasks, parameters, plan), parameters)


def plainly(
    tasks: list[Match], parameters: Mapping[str, Tensor], plan: Plan
) -> list[OuterGradient]:
    return gradients_of(OBJECTIVE, tasks, parameters, plan)


def assert_equal(ones: list[OuterGradient], others: list[OuterGradient]) -> None:
    assert len(ones) == len(others)
    for one, other in zip(ones, others, strict=True):
        assert (one.loss, one.meaningful) == (other.loss, other.meaningful)
        assert one.gradients.keys() == other.gradients.keys()
        for name, gradient in one.gradients.items():
            assert torch.equal(gradient, other.gradients[name])


@pytest.mark.parametrize("together", [1, 3])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("augmented", [False, True])
def test_replays_give_what_one_after_another_gives(together, soft, augmented) -> None:
    record = Counting()
    graph = Reading(OBJECTIVE, record)
    for number in range(5):
        arguments = drawn(number, together=together, soft=soft, augmented=augmented)
        assert_equal(graph(*arguments), plainly(*arguments))
        assert graph.recorded == (number >= 1)
    assert (record.recordings, record.replays) == (1, 1 + 4)  # the first is compared with a call


def test_the_plan_says_how_many_matches_go_side_by_side(monkeypatch) -> None:
    groups = []
    together = MatchTrajectory.differentiate_together

    def counting(self, tasks, parameters, plan):
        groups.append(len(tasks))
        return together(self, tasks, parameters, plan)

    monkeypatch.setattr(MatchTrajectory, "differentiate_together", counting)
    graph, (tasks, parameters, plan) = Reading(OBJECTIVE, call_again), drawn(0, together=3)
    found = [graph(tasks, parameters, replace(plan, tasks=count)) for count in (3, 2, 1)]
    assert groups == [3, 2, 1, 1, 1, 1]
    for each in found[1:]:
        assert_equal(each, found[0])


def test_a_result_outlives_the_next_replay() -> None:
    graph = Reading(OBJECTIVE, call_again)
    results = [graph(*drawn(number, together=2)) for number in range(4)]
    for number, result in enumerate(results):
        assert_equal(result, plainly(*drawn(number, together=2)))


def test_the_inputs_are_not_kept() -> None:
    graph = Reading(OBJECTIVE, call_again)
    for number in range(2):
        graph(*drawn(number))
    (match,), parameters, plan = drawn(2)
    graph([match], parameters, plan)
    for tensor in (match.start, *match.expert.values(), parameters["images"].detach()):
        tensor.fill_(float("nan"))
    match.indices.fill_(10**9)
    assert_equal(graph(*drawn(3)), plainly(*drawn(3)))


def test_other_shapes_are_recorded_when_they_come_again() -> None:
    record = Counting()
    graph = Reading(OBJECTIVE, record)
    shapes: list[dict[str, int]] = [{}, {}, {"count": 5}, {"count": 5}, {"steps": 2}, {}, {}]
    for number, shape in enumerate(shapes):
        arguments = drawn(number, **shape)
        assert_equal(graph(*arguments), plainly(*arguments))
    assert (record.recordings, record.replays) == (3, 3 + 4)


def test_an_expert_that_stands_still_is_seen() -> None:
    graph = Reading(OBJECTIVE, call_again)
    for number in range(3):
        tasks, *rest = drawn(number, together=2)
        assert all(each.meaningful for each in graph(tasks, *rest))
    tasks[1] = tasks[1]._replace(expert={**tasks[1].expert, 2: tasks[1].start})
    assert [each.meaningful for each in graph(tasks, *rest)] == [True, False]


@pytest.mark.parametrize("kind", [RuntimeError, UserError])
def test_what_cannot_be_recorded_runs_without_and_says_so(kind: type[Exception]) -> None:
    def refuse(function):
        raise kind("operation not permitted")

    graph = Reading(OBJECTIVE, refuse)
    graph(*drawn(0))
    with pytest.warns(RuntimeWarning, match=r"not permitted.*--no-graph"):
        result = graph(*drawn(1))
    assert_equal(result, plainly(*drawn(1)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it has been said
        for number in range(2, 5):
            assert_equal(graph(*drawn(number)), plainly(*drawn(number)))


def test_a_leaner_plan_is_recorded_after_memory_ran_out() -> None:
    def record(function):
        if short:
            raise RuntimeError("CUDA out of memory")
        return call_again(function)

    graph, short, leaner = Reading(OBJECTIVE, record), [True], Plan(micro_batch=2)
    graph(*drawn(0))
    with pytest.warns(RuntimeWarning, match="out of memory.*lower --tape-mb or --matches"):
        graph(*drawn(1))
    short.clear()
    graph(*drawn(2))
    assert not graph.recorded  # no second try, nor a second warning, by the same plan
    for number in range(3, 6):
        tasks, parameters, _ = drawn(number)
        assert_equal(graph(tasks, parameters, leaner), plainly(tasks, parameters, leaner))
    assert graph.recorded


def test_a_graph_that_does_nothing_is_not_used() -> None:
    def empty(function):
        return function(), lambda: None

    graph = Reading(OBJECTIVE, empty)
    graph(*drawn(0))
    told = "the first replay differs from a normal call by nan .*--no-graph"
    with pytest.warns(RuntimeWarning, match=told):
        graph(*drawn(1))
    assert_equal(graph(*drawn(2)), plainly(*drawn(2)))
    assert not graph.recorded


@pytest.mark.parametrize("together", [1, 3])
@pytest.mark.parametrize("dsa", ["none", "color_crop_cutout_flip_scale_rotate"])
def test_a_whole_run_gives_the_same_bytes(configure, tmp_path, monkeypatch, dsa, together) -> None:
    settings = {"dsa": dsa, "matches": together}
    distill(configure(out=tmp_path / "plain", **settings))
    record = Counting()
    monkeypatch.setattr(
        loop, "gradients_for", lambda problem, division: Graph(problem.objective, record)
    )
    distill(configure(out=tmp_path / "replayed", **settings))
    assert (record.recordings, record.replays) == (1, 1 + 9)
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "replayed").read_bytes()


def problem_on(device: str, **changes: object) -> Any:
    settings = {
        "model": OBJECTIVE.setup.model,
        "config": SimpleNamespace(graph=True, precise=False),
    }
    return SimpleNamespace(
        device=torch.device(device), objective=OBJECTIVE, **{**settings, **changes}
    )


def test_a_graph_is_for_cuda_and_may_be_refused() -> None:
    assert not isinstance(gradients_for(problem_on("cpu")), Graph)
    refused = problem_on("cuda", config=SimpleNamespace(graph=False))
    assert not isinstance(gradients_for(refused), Graph)
    assert isinstance(gradients_for(problem_on("cuda")), Graph)


def test_a_network_that_the_engine_does_not_know_has_no_graph() -> None:
    with pytest.warns(RuntimeWarning, match="because the experts' network is not one that"):
        found = gradients_for(problem_on("cuda", model=torch.nn.Linear(2, 2)))
    assert not isinstance(found, Graph)


@pytest.mark.cuda
@pytest.mark.parametrize("together", [1, 3])
@pytest.mark.parametrize("augmented", [False, True])
@pytest.mark.parametrize("on_host", [False, True])
def test_a_cuda_graph_gives_what_the_functions_give(together, augmented, on_host) -> None:
    objective = objective_on("cuda")
    graph = Reading(objective, cuda_graph)
    choices = {"together": together, "augmented": augmented, "device": "cuda"}

    def moved(match: Match) -> Match:
        return tree_map_only(Tensor, lambda each: each.cpu().pin_memory(), match)

    for number in range(5):
        tasks, *rest = drawn(number, objective=objective, **choices)
        # tasks on the host are dropped after the call, as in a run
        results = graph([*map(moved, tasks)] if on_host else tasks, *rest)
        wanted = gradients_of(objective, *drawn(number, objective=objective, **choices))
        for result, exact in zip(results, wanted, strict=True):
            assert result.loss == pytest.approx(exact.loss, rel=1e-5)
            for name, gradient in result.gradients.items():
                torch.testing.assert_close(gradient, exact.gradients[name], rtol=1e-4, atol=1e-6)
    assert graph.recorded
    assert ops.engine_for(objective.setup.model) == "engine"
