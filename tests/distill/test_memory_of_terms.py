"""Terms that remember, and the iteration: values, several matches, recordings, resumed runs."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from stand_ins import Counting, Interrupter
from torch import Size, Tensor

from trajmatch.distill import checkpoint, distill, loop
from trajmatch.distill.gradients import Graph
from trajmatch.distill.iteration import outer_iteration
from trajmatch.distill.objectives import OuterGradient, mean_gradient
from trajmatch.distill.problem import prepare
from trajmatch.distill.terms import Course
from trajmatch.distill.terms.course import AtTheEnd
from trajmatch.errors import UserError
from trajmatch.networks import num_parameters


class Entered(AtTheEnd):
    """HoP-TM's mask: a parameter enters, and stays, once its squared error is below a limit."""

    def __init__(self, limit: float = 1e-6, every: int = 2) -> None:
        self.limit, self.every = limit, every

    def memory(self, shapes: Mapping[str, Size]) -> dict[str, Tensor]:
        size = sum(shape.numel() for shape in shapes.values())
        return {"entered": torch.zeros(size, dtype=torch.bool), "seen": torch.zeros(())}

    def remember(self, course: Course) -> dict[str, Tensor]:
        error = (course.student[course.steps] - course.expert[course.epochs]) ** 2
        limit = self.limit * 1.5 ** (course.iteration // self.every)
        return {
            "entered": course.memory["entered"] | (error < limit),
            "seen": course.memory["seen"] + error.sum(),
        }

    def loss(self, course: Course) -> Tensor:
        return course.distance(course.end, self.remember(course)["entered"])


class Forgetful(Entered):
    """Returns something else than it should, as its setting says."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def memory(self, shapes: Mapping[str, Size]) -> Any:
        return [1] if self.what == "list" else super().memory(shapes)

    def remember(self, course: Course) -> Any:
        values: dict[str, Any] = super().remember(course)
        changes = {
            "none": None,
            "constant": dict(course.memory),
            "number": {**values, "seen": 1.0},
            "lacking": {"entered": values["entered"]},
            "other": {**values, "entered": values["entered"].float()},
            "undefined": {**values, "seen": values["seen"] * float("nan")},
        }
        return changes[self.what]

    def loss(self, course: Course) -> Tensor:
        return course.distance(course.end)


class Half(AtTheEnd):
    def memory(self, shapes: Mapping[str, Size]) -> dict[str, Tensor]:
        return {}

    def loss(self, course: Course) -> Tensor:
        return course.distance(course.end)


class Spy(AtTheEnd):
    """Keeps what it sees in a run."""

    def __init__(self, *, seen: list[Course] = []) -> None:  # noqa: B006 (shared on purpose)
        self.seen = seen

    def loss(self, course: Course) -> Tensor:
        self.seen.append(course)
        return course.distance(course.end)


TERM = "terms_that_remember:Entered"


@pytest.fixture(autouse=True)
def own_module(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("terms_that_remember")
    vars(module).update(Entered=Entered, Forgetful=Forgetful, Half=Half, Spy=Spy())
    monkeypatch.setitem(sys.modules, "terms_that_remember", module)


def test_the_mask_of_two_matches_by_hand(configure) -> None:
    """Two terms that remember different things, beside one that does not."""
    terms = ("terms_that_remember:Spy", TERM, f"{TERM}:1e-5")
    problem = prepare(configure(terms=terms, matches=2))
    state = problem.initial_state()
    seen = sys.modules["terms_that_remember"].Spy.seen
    entered = [torch.zeros(num_parameters(problem.model), dtype=torch.bool) for _ in "ab"]
    total = 0.0
    for iteration in range(4):
        seen.clear()
        assert outer_iteration(problem, state)[1] is None
        errors = [(each.student[3] - each.expert[1]).detach().square() for each in seen]
        total += sum(float(each.double().sum()) for each in errors) / 2
        assert [int(each.iteration) for each in seen] == [iteration] * 2
        for number, limit in ((1, 1e-6), (2, 1e-5)):
            entered[number - 1] |= torch.stack(errors).amin(0) < limit * 1.5 ** (iteration // 2)
            found = state.parameters[f"memory.{number}.entered"].value
            assert torch.equal(found, entered[number - 1])
        assert state.parameters["memory.1.seen"].value.item() == pytest.approx(total, rel=1e-5)
    assert 0 < entered[0].sum() < entered[1].sum() < len(entered[1])


def test_the_mean_and_the_largest_of_several_tasks() -> None:
    near = [torch.tensor(each) for each in ([True, False, False], [False, False, True])]
    count = [torch.tensor(each) for each in (3, 5)]
    far = [torch.tensor([each]) for each in (0.1, 0.4)]
    made = [
        OuterGradient(0.5, {}, memory={"near": n, "count": c, "far": f})
        for n, c, f in zip(near, count, far, strict=True)
    ]
    memory = mean_gradient(made).memory
    assert memory["near"].tolist() == [True, False, True] and memory["count"].item() == 5
    assert torch.equal(memory["far"], torch.tensor([0.25]))
    assert mean_gradient(made[:1]).memory["far"] is far[0]


def test_a_recording_reads_iteration_and_memory(configure, monkeypatch, tmp_path) -> None:
    settings = {"terms": (TERM, "terms_that_remember:Forgetful:constant"), "matches": 2}
    distill(configure(out=tmp_path / "plain", **settings))
    record = Counting()
    monkeypatch.setattr(
        loop, "gradients_for", lambda problem, division: Graph(problem.objective, record)
    )
    with pytest.raises(KeyboardInterrupt):
        distill(configure(out=tmp_path / "replayed", **settings), Interrupter(7))
    distill(configure(out=tmp_path / "replayed", resume=True, **settings))
    assert record.recordings == 2 and record.replays > 6
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "replayed").read_bytes()


def test_what_is_remembered_survives_a_checkpoint(configure, tmp_path) -> None:
    config = configure(out=tmp_path / "d", terms=("final", TERM))
    with pytest.raises(KeyboardInterrupt):
        distill(config, Interrupter(5))
    problem = prepare(config)
    state = checkpoint.load(config.checkpoint_path, problem)
    entered = state.parameters["memory.1.entered"]
    assert entered.value.dtype == torch.bool and entered.value.any() and not entered.value.all()
    emptied = replace(entered, value=torch.zeros_like(entered.value))
    state.parameters["memory.1.seen"] = replace(emptied, value=torch.zeros(2))
    checkpoint.save(config.checkpoint_path, state, problem.identity)
    with pytest.raises(UserError, match=r"damaged \(its memory.1.seen should be of shape \[\]\)"):
        checkpoint.load(config.checkpoint_path, problem)
    del state.parameters["memory.1.seen"]
    checkpoint.save(config.checkpoint_path, state, problem.identity)
    with pytest.raises(UserError, match=r"damaged .*memory.1.seen"):
        checkpoint.load(config.checkpoint_path, problem)


def test_an_update_that_is_left_out_leaves_the_memory(configure) -> None:
    problem = prepare(configure(terms=(TERM,), skip_above=1e-9))
    state = problem.initial_state()
    outer_iteration(problem, state)
    assert not state.parameters["memory.0.entered"].value.any()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("Half", r"both of the methods memory\(shapes\) and remember\(course\)"),
        ("Forgetful:list", "memory should return a dict of tensors, but returned a list of 1"),
        ("Forgetful:none", "remember should return a dict of tensors, but returned None"),
        ("Forgetful:number", "remember should return a dict of tensors"),
        (
            "Forgetful:lacking",
            r"the names, shapes and dtypes that memory returns, .*memory.1.seen': '\[\] of "
            r"torch.float32'}, but returned ",
        ),
        (
            "Forgetful:other",
            r"entered': '\[243\] of torch.bool.* returned .*\[243\] of torch.float32",
        ),
        ("Forgetful:x", "remember of .*failed: KeyError: 'x'"),
    ],
)
def test_what_is_wrong_with_a_memory_is_said_before_the_run(
    configure, spec: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        prepare(configure(terms=("final", f"terms_that_remember:{spec}")))


def test_what_is_not_a_number_is_not_remembered(configure) -> None:
    problem = prepare(configure(terms=("final", "terms_that_remember:Forgetful:undefined")))
    state = problem.initial_state()
    _, fault = outer_iteration(problem, state)
    assert fault is not None and fault.cause == "memory.1.seen would be NaN"
    assert state.parameters["memory.1.seen"].value.item() == 0
