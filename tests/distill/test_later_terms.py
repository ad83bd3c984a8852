"""The terms of later papers against their formulas, written out entry by entry in float64."""

import sys
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Size, Tensor

from trajmatch.distill.objectives.matching import MatchingLoss
from trajmatch.distill.problem import prepare
from trajmatch.distill.terms import Course, Term, find_term
from trajmatch.distill.terms.course import AtTheEnd
from trajmatch.errors import UserError

STEPS, EPOCHS = 5, 2
SHAPES = {
    "features.0.weight": Size([3, 2]),
    "features.0.bias": Size([3]),
    "classifier.bias": Size([2]),
}


def course(term: Term, seed: int = 0, shapes: dict[str, Size] = SHAPES) -> Course:
    """Random vectors, as many as the term asks for; the student's require a gradient."""
    draw = torch.Generator().manual_seed(seed)
    loss = MatchingLoss((term,), EPOCHS)
    size = sum(shape.numel() for shape in shapes.values())

    def vector() -> Tensor:
        return torch.randn(size, generator=draw, dtype=torch.float64)

    return Course(
        start=vector(),
        student={step: vector().requires_grad_() for step in loss.student_steps(STEPS)},
        expert={epoch: vector() for epoch in loss.expert_epochs(STEPS)},
        steps=STEPS,
        epochs=EPOCHS,
        shapes=shapes,
    )


def weighted(seen: Course, step: int, weights: list[float]) -> Tensor:
    """The distance at a step and the end of the expert's segment, entry by entry."""
    student, expert, start = seen.student[step], seen.expert[EPOCHS], seen.start
    above = sum(w * (a - b) ** 2 for w, a, b in zip(weights, student, expert, strict=True))
    below = sum(w * (a - b) ** 2 for w, a, b in zip(weights, start, expert, strict=True))
    return torch.as_tensor(above / below)


def nearest(seen: Course) -> int:
    far = {n: sum(abs(seen.student[n] - seen.expert[EPOCHS]).tolist()) for n in seen.student}
    return max(n for n in far if far[n] == min(far.values()))


def kept(seen: Course, ratio: float) -> list[float]:
    squares = ((seen.student[STEPS] - seen.expert[EPOCHS]) ** 2).tolist()
    dropped = sorted(range(len(squares)), key=lambda i: squares[i])[: int(ratio * len(squares))]
    return [0.0 if i in dropped else 1.0 for i in range(len(squares))]


CASES: dict[str, Callable[[Course], tuple[int, list[float]]]] = {
    "automatic": lambda seen: (nearest(seen), [1.0] * 11),
    "deep:0": lambda seen: (STEPS, [1.0] * 11),
    "deep:0.5": lambda seen: (STEPS, [0.0] * 5 + [1.0] * 6),
    "deep:alpha=0.99": lambda seen: (STEPS, [0.0] * 10 + [1.0]),
    "dropout:0": lambda seen: (STEPS, [1.0] * 11),
    "dropout:0.4": lambda seen: (STEPS, kept(seen, 0.4)),
    "layers:features.*=0.5": lambda seen: (STEPS, [0.5] * 9 + [1.0] * 2),
    "layers:*=0,*.weight=3,classifier.bias=0.25": lambda seen: (
        STEPS,
        [3.0] * 6 + [0.0] * 3 + [0.25] * 2,
    ),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("spec", CASES)
def test_value_and_gradient(spec: str, seed: int) -> None:
    term = find_term(spec)
    seen = course(term, seed)
    wanted = weighted(seen, *CASES[spec](seen))
    found = MatchingLoss((term,), EPOCHS)(seen)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)
    students = list(seen.student.values())
    exact = torch.autograd.grad(wanted, students, materialize_grads=True)
    for one, other in zip(
        torch.autograd.grad(found, students, materialize_grads=True), exact, strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)
        assert torch.equal(one == 0, other == 0)  # what is left out has no gradient at all


def test_of_equally_near_steps_the_later_one_counts() -> None:
    term = find_term("automatic")
    seen = course(term)
    for step in (2, 4):  # the same sum of absolute differences in two directions
        away = torch.zeros(11, dtype=torch.float64)
        away[step] = 0.25
        seen.student[step].data.copy_(seen.expert[EPOCHS] + away)
    gradients = torch.autograd.grad(term.loss(seen), list(seen.student.values()))
    assert [bool(each.any()) for each in gradients] == [False, False, False, True, False]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("deep", r"missing .*'alpha'; deep takes alpha, as deep:VALUE,\.\.\."),
        ("deep:0.5,0.5", "too many positional arguments"),
        ("deep:0.5,beta=1", "got an unexpected keyword argument 'beta'"),
        ("deep:1", "--terms deep: alpha should be a number of at least 0 and below 1, but is 1"),
        ("deep:nan", "deep: alpha should .*, but is nan"),
        ("deep:", "deep: alpha should .*, but is ''"),
        ("dropout:half", "--terms dropout: ratio should .*, but is 'half'"),
        ("dropuot:0.5", "no term 'dropuot'.*did you mean dropout"),
        ("final:1", "final takes no settings"),
        ("intermediate:rising", "intermediate takes no settings"),
        ("layers", "should be layers:PATTERN=WEIGHT"),
        ("layers:2,*=1", "should be layers:PATTERN"),
        ("layers:*=1,*=2", r"'\*=2' should come only once"),
        ("layers:*=1,2", "'2' should be NAME=VALUE"),
        ("layers:*=-1", r"layers: the weight of \* should be a finite number of at least 0"),
        ("layers:*=much", r"the weight of \* should be a finite number"),
    ],
)
def test_settings_that_do_not_fit(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_term(spec)


class Scaled(AtTheEnd):
    def __init__(self, factor: float, power: int = 2) -> None:
        self.factor, self.power = factor, power

    def loss(self, seen: Course) -> Tensor:
        return self.factor * seen.distance(seen.end) ** self.power


class Harmful(AtTheEnd):
    """Returns what its setting says in place of a loss."""

    def __init__(self, what: str) -> None:
        self.what = what

    def loss(self, seen: Course) -> Tensor:
        distance = seen.distance(seen.end)
        choices = {
            "nothing": None,
            "number": distance.item(),
            "vector": seen.student[seen.steps],
            "constant": distance.detach(),
        }
        return choices[self.what]  # type: ignore[return-value]


@pytest.fixture
def own_module(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("later_terms")
    vars(module).update(Scaled=Scaled, Harmful=Harmful, scaled=lambda factor: Scaled(factor, 1))
    monkeypatch.setitem(sys.modules, "later_terms", module)


@pytest.mark.parametrize(
    ("settings", "factor", "power"),
    [("Scaled:3", 3, 2), ("Scaled:3,power=1", 3, 1), ("Scaled:0.5,4", 0.5, 4), ("scaled:2", 2, 1)],
)
def test_a_term_of_ones_own_with_settings(
    own_module: None, settings: str, factor: float, power: int
) -> None:
    term = find_term(f"later_terms:{settings}")
    seen = course(term)
    assert term.loss(seen).item() == pytest.approx(factor * seen.distance(seen.end).item() ** power)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("later_terms:Harmful:nothing", "Harmful:nothing should return.* but returned None"),
        ("later_terms:Harmful:number", r"but returned [\d.]+; sum .* do not call .item\(\)"),
        ("later_terms:Harmful:vector", r"a tensor of shape \[\d+\]"),
        ("later_terms:Harmful:constant", "does not depend on the student's parameters"),
        ("later_terms:Harmful:x", "loss of .*failed: KeyError: 'x'"),
        ("later_terms:Harmful", "missing a required argument: 'what'"),
        ("layers:features.7.*=2", r"no parameter .*'features.7.\*'; it has features.0.weight, "),
        ("layers:*=0", "all weights are 0"),
    ],
)
def test_what_is_wrong_with_a_term_is_said_before_the_run(
    own_module: None, configure, spec: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        prepare(configure(terms=("final", spec)))


@pytest.mark.parametrize("spec", ["automatic", "deep:0.5", "dropout:0.25", "layers:classifier.*=2"])
def test_a_run_records_the_term_with_its_settings(configure, spec: str) -> None:
    from trajmatch.distill import distill

    assert distill(configure(terms=(spec,), iterations=2)).recipe["terms"] == [spec]
