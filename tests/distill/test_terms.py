"""The terms of the matching loss against sums by hand."""

import math
import sys
from types import ModuleType

import pytest
import torch

from trajmatch.distill.objectives.matching import MatchingLoss
from trajmatch.distill.terms import Course, Final, Intermediate, Term, Waypoint, find_term
from trajmatch.errors import UserError

START = torch.tensor([3.0, 0.0], dtype=torch.float64)
EXPERT = {
    1: torch.tensor([1.0, 1.0], dtype=torch.float64),
    2: torch.tensor([0.0, 2.0], dtype=torch.float64),
    3: torch.tensor([0.0, 4.0], dtype=torch.float64),
}


def distance(student: torch.Tensor, epoch: int) -> float:
    """Written out in numbers, without the operator."""
    away = [(s - e) ** 2 for s, e in zip(student.tolist(), EXPERT[epoch].tolist(), strict=True)]
    path = [(s - e) ** 2 for s, e in zip(START.tolist(), EXPERT[epoch].tolist(), strict=True)]
    return math.fsum(away) / math.fsum(path)


def course(student: dict[int, torch.Tensor], steps: int) -> Course:
    return Course(START, student, EXPERT, steps, 3)


def students(*steps: int) -> dict[int, torch.Tensor]:
    return {step: torch.tensor([0.5 * step, 7.0 / step], dtype=torch.float64) for step in steps}


def test_the_final_term() -> None:
    student = students(7)
    loss = MatchingLoss((Final(),), epochs=3)
    assert (loss.student_steps(7), loss.expert_epochs(7)) == ([7], [3])
    assert loss(course(student, 7)).item() == pytest.approx(distance(student[7], 3))


@pytest.mark.parametrize(
    ("name", "weights"), [("intermediate", (1, 1)), ("intermediate-rising", (1 / 3, 2 / 3))]
)
def test_intermediate_terms(name: str, weights: tuple[float, float]) -> None:
    # floor(7 / 3) = 2 steps for each epoch, so that the points are steps 2 and 4.
    student = students(2, 4, 7)
    loss = MatchingLoss((find_term("final"), find_term(name)), epochs=3)
    assert (loss.student_steps(7), loss.expert_epochs(7)) == ([2, 4, 7], [1, 2, 3])
    between = weights[0] * distance(student[2], 1) + weights[1] * distance(student[4], 2)
    wanted = distance(student[7], 3) + between
    assert loss(course(student, 7)).item() == pytest.approx(wanted)


def test_there_is_nothing_between_the_ends_of_one_epoch() -> None:
    term = Intermediate()
    assert term.waypoints(5, 1) == []
    assert term.loss(Course(START, {}, {}, 5, 1)).item() == 0


def test_fewer_steps_than_epochs() -> None:
    with pytest.raises(UserError, match="--student-steps 2 is below --expert-epochs 3"):
        MatchingLoss((Intermediate(),), epochs=3).waypoints(2)


class Farthest:
    """The largest difference of a parameter, relative to the path."""

    def waypoints(self, steps: int, epochs: int) -> list[Waypoint]:
        return [Waypoint(1, 1), Waypoint(steps, epochs)]

    def loss(self, course: Course) -> torch.Tensor:
        end = course.student[course.steps] - course.expert[course.epochs]
        return end.abs().max() / (course.start - course.expert[1]).abs().max()


class Beyond(Farthest):
    def waypoints(self, steps: int, epochs: int) -> list[Waypoint]:
        return [Waypoint(steps + 1, epochs)]


@pytest.fixture
def own_module(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("terms_of_mine")
    module.Farthest, module.made = Farthest, Farthest()  # type: ignore[attr-defined]
    module.nothing = 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "terms_of_mine", module)


@pytest.mark.parametrize("name", ["Farthest", "made"])
def test_a_term_of_ones_own(own_module: None, name: str) -> None:
    student = students(1, 2)
    loss = MatchingLoss((find_term(f"terms_of_mine:{name}"),), epochs=3)
    assert loss.student_steps(2) == [1, 2]
    # student (1, 3.5) and expert (0, 4) at the end; the path to epoch 1 is (2, -1)
    assert loss(course(student, 2)).item() == pytest.approx(1.0 / 2.0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("intermediat", "did you mean intermediate"),
        ("no_such_module:x", "there is no Python module 'no_such_module'.*PYTHONPATH"),
        ("terms_of_mine:maid", r"terms_of_mine .*has no 'maid' \(did you mean made\?\)"),
        ("terms_of_mine:nothing", "waypoints"),
    ],
)
def test_what_is_no_term(own_module: None, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_term(name)


def test_a_point_outside_of_the_segment() -> None:
    with pytest.raises(UserError, match=r"step=3, epoch=1.*steps 1 to 2 and epochs 1 to 1"):
        MatchingLoss((Beyond(),)).student_steps(2)


class Returns(Farthest):
    def __init__(self, value: object) -> None:
        self.value = value

    def loss(self, course: Course) -> torch.Tensor:
        return self.value  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0.5, "should return its loss as a tensor of one number .*but returned 0.5; sum"),
        (None, "but returned None"),
        (torch.ones(2), r"but returned a tensor of shape \[2\]; .*sum a loss"),
        (torch.ones(()), "does not depend on the student's parameters"),
    ],
)
def test_a_loss_that_cannot_be_differentiated(value: object, message: str) -> None:
    student = {step: each.requires_grad_() for step, each in students(1, 2).items()}
    with pytest.raises(UserError, match=message):
        MatchingLoss((Returns(value),), epochs=3)(course(student, 2))


class Points(Farthest):
    def __init__(self, points: object) -> None:
        self.points = points

    def waypoints(self, steps: int, epochs: int) -> list[Waypoint]:
        return self.points  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([], "compares nothing: .*waypoints returns no Waypoint"),
        (None, "but returned None"),
        (3, "but returned 3"),
        (
            [(2, 3)],
            r"a list of trajmatch\.distill\.terms\.Waypoint .*but returned \(2, 3\)",
        ),
    ],
)
def test_points_that_are_none(points: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        MatchingLoss((Points(points),)).student_steps(2)


def test_points_of_any_iterable_and_a_term_without_points_beside_another() -> None:
    point = Waypoint(1, 1)
    loss = MatchingLoss((Points(iter([point])), Points([])))
    assert loss.waypoints(2) == [point]


class Broken(Farthest):
    def __init__(self, error: Exception) -> None:
        self.error = error

    def loss(self, course: Course) -> torch.Tensor:
        raise self.error


OWN = ("final", "mine:Mine")


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (Beyond(), "asks for"),
        (Points(None), "returned None"),
        (Returns(None), "returned None"),
        (Broken(KeyError(99)), r"steps \[1, 2\] .*KeyError: 99 \(.*test_terms.py, line \d+\)"),
    ],
)
def test_what_is_wrong_with_a_term_is_said_by_its_name(term: Term, message: str) -> None:
    loss = MatchingLoss((Final(), term), epochs=3, names=OWN)
    with pytest.raises(UserError, match=f"--terms mine:Mine.*{message}"):
        loss.student_steps(2)
        loss(course(students(1, 2), 2))


def test_terms_that_do_not_depend_on_the_student_are_named() -> None:
    student = {step: each.requires_grad_() for step, each in students(1, 2).items()}
    loss = MatchingLoss((Returns(torch.ones(())),), epochs=3, names=("mine:Mine",))
    with pytest.raises(UserError, match=r"--terms mine:Mine: .*does not depend"):
        loss(course(student, 2))


def test_memory_that_runs_out_in_a_term_is_not_its_fault() -> None:
    with pytest.raises(MemoryError):
        MatchingLoss((Broken(MemoryError()),), epochs=3)(course(students(1, 2), 2))


def test_a_term_sees_names_and_shapes() -> None:
    shapes = {"weight": torch.Size([1, 1]), "bias": torch.Size([1])}
    seen = Course(START, {}, EXPERT, 2, 3, shapes)
    parts = seen.split(EXPERT[2])
    assert {name: part.tolist() for name, part in parts.items()} == {
        "weight": [[0.0]],
        "bias": [2.0],
    }
