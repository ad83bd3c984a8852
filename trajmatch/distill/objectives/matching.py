"""The matching loss: a sum of terms that compare a student with an expert."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from trajmatch import files
from trajmatch.distill.parameters import MEMORY, tensors_by_name
from trajmatch.distill.terms import Course, Remembering, Term, Waypoint
from trajmatch.distill.terms.built_in import Final
from trajmatch.errors import UserError
from trajmatch.images.parametrisation import Tensors
from trajmatch.importing import blamed
from trajmatch.random import generator


@dataclass(frozen=True)
class MatchingLoss:
    """Sum of one or more terms, for matches over a given number of expert epochs."""

    terms: tuple[Term, ...] = (Final(),)
    epochs: int = 1  # M, the number of expert epochs
    names: tuple[str, ...] = ()  # names of the terms in messages; empty: names of the classes

    def _named(self) -> list[tuple[str, Term]]:
        names = self.names or [type(term).__name__ for term in self.terms]
        return list(zip(names, self.terms, strict=True))

    def waypoints(self, steps: int) -> list[Waypoint]:
        """Check and return the waypoints of all terms for a student of ``steps`` steps."""
        found = [_waypoints_of(name, term, steps, self.epochs) for name, term in self._named()]
        if not (points := [*chain.from_iterable(found)]):
            raise UserError(
                f"--terms {self._listed()} compares nothing: for {steps} student steps and "
                f"{self.epochs} expert epochs, waypoints returns no Waypoint"
            )
        return points

    def _listed(self) -> str:
        return " ".join(name for name, _ in self._named())

    def student_steps(self, steps: int) -> list[int]:
        """Return the student steps at all waypoints, in ascending order."""
        return sorted({point.step for point in self.waypoints(steps)})

    def expert_epochs(self, steps: int) -> list[int]:
        """Return the expert epochs at all waypoints, and ``M``, in ascending order."""
        # M is needed even without a waypoint there, to see whether the expert moved at all.
        return sorted({point.epoch for point in self.waypoints(steps)} | {self.epochs})

    def __call__(self, course: Course) -> Tensor:
        """Return the loss ``[]`` of one match; ``course`` has the memory of all terms."""
        first, *others = (
            _loss_of(name, term, _seen(course, number))
            for number, (name, term) in enumerate(self._named())
        )
        total = sum(others, start=first)
        # Only a differentiable student can show that a term detached its parameters.
        if any(each.requires_grad for each in course.student.values()):
            _check_graph(self._listed(), total)
        return total

    def memory(self, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
        """Return initial values of the memory tensors of all terms, by name."""
        return self._remembered("memory", lambda _: shapes)

    @torch.no_grad()
    def remember(self, course: Course) -> dict[str, Tensor]:
        """Return next values of the memory tensors; UserError if names, shapes or dtypes change."""
        found = self._remembered("remember", partial(_seen, course))
        wanted, came = _kinds(course.memory), _kinds(found)
        # In a memory trial no term remembers, but the course has the memory of the run's terms.
        if wanted != came and any(isinstance(term, Remembering) for term in self.terms):
            raise UserError(
                f"--terms {self._listed()}: remember should return tensors with the names, shapes "
                f"and dtypes that memory returns, {wanted}, but returned {came}"
            )
        return found

    def _remembered(self, method: str, argument: Callable[[int], Any]) -> dict[str, Tensor]:
        """Call ``method`` of each remembering term with ``argument(number of the term)``."""
        found: dict[str, Tensor] = {}
        for number, (name, term) in enumerate(self._named()):
            if isinstance(term, Remembering):
                with blamed(f"{method} of --terms {name}"):
                    made = getattr(term, method)(argument(number))
                own = tensors_by_name(f"--terms {name}: {method}", made)
                # The term's number keeps equal names of two terms apart.
                found |= {f"{MEMORY}{number}.{key}": each for key, each in own.items()}
        return found

    def check(
        self, steps: int, shapes: Mapping[str, torch.Size], device: str | torch.device = "cpu"
    ) -> None:
        """Try each term and its derivative on random parameters, so that errors come early."""
        size, draw = sum(shape.numel() for shape in shapes.values()), generator(0, "terms")
        start, expert, end = torch.randn(3, size, generator=draw).to(device)
        student = end.requires_grad_()
        # One student and one expert vector stand for all waypoints: only errors matter here.
        students = dict.fromkeys(self.student_steps(steps), student)
        experts = dict.fromkeys(self.expert_epochs(steps), expert)
        iteration = torch.zeros((), dtype=torch.int64, device=device)
        memory = {name: value.to(device) for name, value in self.memory(shapes).items()}
        course = Course(start, students, experts, steps, self.epochs, shapes, iteration, memory)
        self.remember(course)
        for number, (name, term) in enumerate(self._named()):
            # A term without waypoints, such as Intermediate for M = 1, is a constant 0.
            if _waypoints_of(name, term, steps, self.epochs):
                loss = _loss_of(name, term, _seen(course, number))
                _check_graph(name, loss)
                with blamed(f"the derivative of --terms {name}"):
                    torch.autograd.grad(loss, student)


def _seen(course: Course, number: int) -> Course:
    """Return the course with the memory of one term only, under the term's own names."""
    return replace(course, memory=files.under(f"{MEMORY}{number}.", course.memory))


def _kinds(tensors: Tensors) -> dict[str, str]:
    return {name: f"{list(each.shape)} of {each.dtype}" for name, each in tensors.items()}


def _check_graph(names: str, loss: Tensor) -> None:
    if not loss.requires_grad:
        raise UserError(
            f"--terms {names}: the matching loss does not depend on the student's parameters, so "
            "it has no gradient; do not detach the student's parameters in your own term"
        )


def _waypoints_of(name: str, term: Term, steps: int, epochs: int) -> list[Waypoint]:
    with blamed(f"waypoints of --terms {name}"):
        made = term.waypoints(steps, epochs)
        points = list(made) if isinstance(made, Iterable) else [made]
    for point in points:
        if not isinstance(point, Waypoint):
            raise UserError(
                f"--terms {name}: waypoints should return a list of "
                f"trajmatch.distill.terms.Waypoint objects, but returned {point!r:.100}"
            )
        if not (1 <= point.step <= steps and 1 <= point.epoch <= epochs):
            raise UserError(
                f"--terms {name} asks for {point}, but a segment has steps 1 to {steps} and "
                f"epochs 1 to {epochs}"
            )
    return points


def _loss_of(name: str, term: Term, course: Course) -> Tensor:
    with blamed(
        f"loss of --terms {name}, given the student at steps {sorted(course.student)} and the "
        f"expert at epochs {sorted(course.expert)},"
    ):
        loss = term.loss(course)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        came = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
        raise UserError(
            f"--terms {name} should return its loss as a tensor of one number that can be "
            f"differentiated, but returned {came}; sum a loss of several values, and do not call "
            ".item()"
        )
    return loss
