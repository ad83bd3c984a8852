"""Plans: what they say beforehand, and what happens where memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from bench.recorders import call_again

from trajmatch import ops
from trajmatch.distill import distill, selection
from trajmatch.distill import loop as loop_module
from trajmatch.distill import memory_plan as plan_module
from trajmatch.distill.gradients import Graph, one_by_one
from trajmatch.distill.iteration import outer_iteration
from trajmatch.distill.memory_plan import (
    Forecast,
    WithinMemory,
    choose,
    forecast,
    leaner,
    planned,
)
from trajmatch.distill.objectives import Plan, Results, student_batches
from trajmatch.distill.parameters import leaves
from trajmatch.distill.problem import Problem, prepare
from trajmatch.errors import UserError
from trajmatch.evaluate.scores import evaluate_set

MEGA = 2**20
OUT_OF_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
    MemoryError(),
)


def first_forecast(problem: Problem, plan: Plan) -> Forecast:
    return forecast(problem, first_leaves(problem), plan)


def first_leaves(problem: Problem) -> dict[str, torch.Tensor]:
    return leaves(problem.initial_state().parameters, "cpu")


def batch_sizes(problem: Problem) -> list[int]:
    """Images in each student step; not all the same."""
    config = problem.config
    batches = student_batches(6, config.batch_syn, config.student_steps, torch.Generator())
    return [len(batch) for batch in batches]


class Starved:
    """Computes gradients one by one, but has memory for some plans only."""

    def __init__(self, enough: Callable[[Plan], bool], error: Exception) -> None:
        self.enough, self.error = enough, error
        self.asked: list[Plan] = []
        self.seen: list[list[list[int]]] = []

    def for_run(self, problem: Problem, division: object) -> Any:
        """In the place of ``gradients_for``."""
        return partial(self, problem.objective)

    def __call__(
        self, objective: Any, tasks: Sequence[Any], leaves: Any, plan: Plan
    ) -> list[Results]:
        self.asked.append(plan)
        self.seen.append([batch.tolist() for batch in tasks[0].batches])
        if not self.enough(plan):
            raise self.error
        return one_by_one(objective, tasks, leaves, plan)


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_the_same_iteration_by_a_leaner_plan(
    configure, monkeypatch: pytest.MonkeyPatch, tmp_path, error: Exception
) -> None:
    plain = distill(configure(out=tmp_path / "plain"))
    starved = Starved(lambda plan: plan.tape_bytes == 0, error)
    monkeypatch.setattr(loop_module, "gradients_for", starved.for_run)
    with pytest.warns(UserWarning, match=r"at most 1024 MB of .*\); continuing, now keeping no"):
        result = distill(configure())
    assert [plan.tape_bytes for plan in starved.asked[:3]] == [1024 * MEGA, 0, 0]
    assert starved.seen[0] == starved.seen[1] != starved.seen[2]
    assert torch.equal(result.images, plain.images)


def test_an_evaluation_short_of_memory_gets_that_of_the_graph(
    configure, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    tested = {"eval_every": 4, "eval_seeds": 1, "eval_epochs": 1}
    plain = distill(configure(out=tmp_path / "plain", **tested))
    graph = Graph(prepare(configure()).objective, call_again)
    monkeypatch.setattr(loop_module, "gradients_for", lambda problem, division: graph)
    recorded = []

    def starved(*arguments: Any) -> Any:
        recorded.append(graph.replayed.recorded)
        if graph.replayed.recorded:
            raise torch.OutOfMemoryError
        return evaluate_set(*arguments)

    monkeypatch.setattr(selection, "evaluate_set", starved)
    result = distill(configure(**tested))
    assert recorded[:2] == [True, False]
    assert result.scores == plain.scores
    assert torch.equal(result.images, plain.images)


def test_memory_that_no_plan_helps(configure, monkeypatch: pytest.MonkeyPatch) -> None:
    starved = Starved(lambda plan: False, MemoryError())
    monkeypatch.setattr(loop_module, "gradients_for", starved.for_run)
    with (
        pytest.warns(UserWarning, match="memory ran out"),
        pytest.raises(UserError, match=r"with the leanest plan .* lower --student-steps \(now"),
    ):
        distill(configure())


def test_other_errors_stay_what_they_are(configure, monkeypatch: pytest.MonkeyPatch) -> None:
    starved = Starved(lambda plan: False, RuntimeError("sizes do not match"))
    monkeypatch.setattr(loop_module, "gradients_for", starved.for_run)
    with pytest.raises(RuntimeError, match="sizes do not match"):
        distill(configure())


@pytest.mark.parametrize("network", ["mlp", "resnet18:width=4"])
def test_where_images_go_together_batches_are_halved(configure, make_store, network: str) -> None:
    store = make_store("other", network=network, width=128, depth=3)
    problem = prepare(configure(experts=store, batch_syn=None))
    plans = [planned(problem)]
    while (plan := leaner(problem, plans[-1], images=6)) is not None:
        plans.append(plan)
    assert plans == [Plan(1024 * MEGA), Plan(), Plan(0, 3), Plan(0, 2), Plan(0, 1)]


def test_fewer_matches_go_side_by_side(configure, mlp_store) -> None:
    problem = prepare(configure(experts=mlp_store, batch_syn=None))
    plans = [planned(problem, tasks=5)]
    while (plan := leaner(problem, plans[-1], images=6)) is not None:
        plans.append(plan)
    assert [each.tasks for each in plans] == [5, 5, 3, 2, 1, 1, 1, 1]
    assert [each.micro_batch for each in plans] == [None] * 5 + [3, 2, 1]
    first = "keeping at most 1024 MB of activations, 5 matches side by side"
    assert str(plans[0]) == first and "side by side" not in str(plans[-1])


def test_matches_side_by_side_take_as_much_each(configure) -> None:
    many = prepare(configure(student_steps=20000))
    one, three = (first_forecast(many, Plan(10 * MEGA, tasks=count)) for count in (1, 3))
    assert three.kept_bytes == 3 * one.kept_bytes > 0
    assert three.more_bytes == pytest.approx(3 * one.more_bytes, rel=0.15)


@pytest.mark.parametrize("graph", [True, False])
def test_a_graph_runs_its_matches_side_by_side(
    configure, monkeypatch: pytest.MonkeyPatch, graph: bool
) -> None:
    if graph:
        monkeypatch.setattr(
            loop_module, "gradients_for", lambda problem, _: Graph(problem.objective, call_again)
        )
    told: list[Forecast] = []
    distill(configure(matches=3), tell=told.append)
    assert told[0].plan.tasks == (3 if graph else 1)


def test_matches_that_do_not_fit_run_one_after_another(
    configure, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Limited(Graph):
        def __call__(self, tasks: Any, parameters: Any, plan: Plan) -> Any:
            if plan.tasks > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().__call__(tasks, parameters, plan)

    wanted = distill(configure(matches=3, out=tmp_path / "one"))
    monkeypatch.setattr(
        loop_module, "gradients_for", lambda problem, _: Limited(problem.objective, call_again)
    )
    with pytest.warns(
        UserWarning, match="memory ran out .*, [32] matches side by side.*continuing"
    ):
        found = distill(configure(matches=3, out=tmp_path / "three"))
    assert torch.equal(found.images, wanted.images)


def test_a_batch_norm_is_not_parted(configure, make_store) -> None:
    store = make_store("batch", norm="batch")
    assert leaner(prepare(configure(experts=store)), Plan(), images=6) is None
    with pytest.raises(UserError, match="--micro-batch 2 would change the result, because in this"):
        distill(configure(experts=store, micro_batch=2))


def test_parts_give_the_same_result_but_for_rounding(configure, tmp_path) -> None:
    settings = {"ipc": 2, "iterations": 3}
    whole = distill(configure(out=tmp_path / "whole", **settings))
    parted = distill(configure(out=tmp_path / "parted", micro_batch=2, **settings))
    assert not torch.equal(parted.images, whole.images)
    torch.testing.assert_close(parted.images, whole.images, rtol=1e-3, atol=1e-4)
    assert parted.recipe == whole.recipe


def test_the_trial_changes_nothing(configure, tmp_path, monkeypatch) -> None:
    told: list[Forecast] = []
    result = distill(configure(out=tmp_path / "told"), tell=told.append)
    (found,) = told
    assert found.fits and found.plan == Plan(1024 * MEGA)
    assert found.seconds > 0 and found.peak_bytes > 50 * MEGA
    monkeypatch.setattr(loop_module, "choose", lambda *_: found)
    plain = distill(configure(out=tmp_path / "plain"))
    assert torch.equal(result.images, plain.images)


@pytest.fixture
def mlp_store(make_store) -> Path:
    """Experts whose leaner plans change the bits of the result: batches are divided."""
    return make_store("mlp", network="mlp", width=128, depth=3)


def test_the_display_changes_no_byte_where_memory_is_short(
    configure, mlp_store, tmp_path, monkeypatch
) -> None:
    settings = {"experts": mlp_store, "iterations": 3}
    distill(configure(out=tmp_path / "enough", **settings))
    monkeypatch.setattr(plan_module, "free_bytes", lambda device: -1)
    told: list[Forecast] = []
    distill(configure(out=tmp_path / "shown", **settings), tell=told.append)
    distill(configure(out=tmp_path / "quiet", **settings))
    assert [each.plan for each in told] == [Plan(0, micro_batch=1)]
    enough, shown, quiet = ((tmp_path / name).read_bytes() for name in ("enough", "shown", "quiet"))
    assert shown == quiet != enough


def test_the_announcement_adds_up(configure) -> None:
    found = first_forecast(prepare(configure()), Plan(1024 * MEGA))
    kept = ops.tape_bytes(prepare(configure()).model, batch_sizes(prepare(configure())))
    assert found.kept_bytes == kept < found.peak_bytes
    assert str(
        replace(found, peak_bytes=290_000_000, kept_bytes=85_000_000, free_bytes=10**10)
    ) == ("290 MB of memory at most, 85 MB of it for kept activations; 10.00 GB free")
    assert "no kept activations, 3 images at a time;" in str(
        first_forecast(prepare(configure()), Plan(1024 * MEGA, micro_batch=3))
    )


@pytest.mark.parametrize("steps", range(4))
def test_the_last_steps_that_fit_are_kept(configure, steps: int) -> None:
    problem = prepare(configure())
    sizes = batch_sizes(problem)[3 - steps :]
    limit = ops.tape_bytes(problem.model, sizes) if sizes else 0
    assert first_forecast(problem, Plan(limit)).kept_bytes == limit
    assert first_forecast(problem, Plan(limit + 1)).kept_bytes == limit


def test_memory_that_runs_out_while_others_wait_ends_the_run(configure) -> None:
    problem = prepare(configure())
    state = problem.initial_state()
    starved = Starved(lambda plan: False, MemoryError("not enough"))
    gradients = starved.for_run(problem, None)
    compute = WithinMemory(gradients, problem, planned(problem, shared=True), alone=False)
    with pytest.raises(UserError, match=r"keeping no activations\): not enough; lower --student"):
        outer_iteration(problem, state, compute)
    assert len(starved.asked) == 1


@pytest.mark.parametrize(
    ("vectors", "settings"),
    [
        (1, {}),
        (4, {"terms": ["automatic"]}),
        (2, {"objective": "train-and-test"}),
        (3, {"objective": "train-and-test", "student_optimiser": "adam"}),
    ],
)
def test_memory_grows_by_the_vectors_of_each_step(configure, vectors: int, settings: Any) -> None:
    length = "window" if "objective" in settings else "student_steps"
    alone = {"student_steps": 20, "max_start_epoch": None, "expert_epochs": 2, "steps_before": "0"}
    settings = {**(alone if length == "window" else {}), **settings, length: 20000}
    problem = prepare(configure(**settings))
    wanted = 4 * vectors * 20000 * len(problem.store.snapshot(0, 0))
    assert first_forecast(problem, Plan()).more_bytes == pytest.approx(wanted, rel=0.15)


def test_memory_grows_by_what_is_kept(configure) -> None:
    many = prepare(configure(student_steps=20000))
    kept = first_forecast(many, Plan(tape_bytes=10 * MEGA)).more_bytes
    assert kept - first_forecast(many, Plan()).more_bytes == pytest.approx(10 * MEGA, abs=8 * MEGA)


def test_the_plan_is_the_first_that_fits(configure, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = prepare(configure())

    def needs(_: Problem, leaves: Any, plan: Plan) -> Forecast:
        return Forecast(plan, 1.0, 0, 100 if plan.tape_bytes else 10, free_bytes=50)

    monkeypatch.setattr(plan_module, "forecast", needs)
    assert choose(problem, first_leaves(problem), planned(problem)).plan == Plan()
    never = replace(problem, config=replace(problem.config, tape_mb=0))
    monkeypatch.setattr(plan_module, "forecast", lambda *_: Forecast(Plan(), 1.0, 0, 99, 50))
    assert not choose(never, first_leaves(problem), planned(never)).fits


def test_the_tape_of_a_gpu_is_for_all_matches(configure) -> None:
    problem = prepare(configure(matches=2))
    on_gpu = replace(problem, device=torch.device("cuda"))
    assert planned(problem) == Plan(1024 * MEGA)
    assert planned(on_gpu) == Plan(16384 * MEGA)
    assert planned(on_gpu, tasks=2) == Plan(8192 * MEGA, tasks=2)
    asked = replace(on_gpu, config=replace(problem.config, tape_mb=5))
    assert planned(asked) == Plan(5 * MEGA)
    assert planned(asked, tasks=2) == Plan(5 * MEGA // 2, tasks=2)
    assert planned(asked, shared=True) == Plan()
