"""The terms of the matching loss: comparisons of a student with an expert.

The matching loss is the sum of the terms that a run names. A term is an object with two methods,
:class:`Term`; ``package.module:NAME`` brings one of a user's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from trajmatch import ops
from trajmatch.errors import UserError
from trajmatch.importing import blamed, named
from trajmatch.networks.flat import split


@dataclass(frozen=True)
class Waypoint:
    """A point at which student and expert are compared.

    Attributes:
        step: Steps that the student has done, 1 to ``N``.
        epoch: Epochs that the expert has gone beyond the start epoch, 1 to ``M``.
    """

    step: int
    epoch: int


@dataclass(frozen=True)
class Course:
    """The part of a match that a term sees.

    Attributes:
        start: theta_0, where the student started; perturbed, where the run perturbs it. ``[P]``.
        student: Parameters of the student after the steps of all waypoints. ``[P]`` each;
            differentiable.
        expert: Parameters of the expert at the epochs of all waypoints, counted from the start
            epoch. ``[P]`` each.
        steps: Student steps ``N``.
        epochs: Expert epochs ``M``.
        shapes: Shapes of the network's parameters by name, in the order of the vectors.
    """

    start: Tensor
    student: Mapping[int, Tensor]
    expert: Mapping[int, Tensor]
    steps: int
    epochs: int
    shapes: Mapping[str, torch.Size] = field(default_factory=dict)

    def split(self, theta: Tensor) -> dict[str, Tensor]:
        """Return views of a vector ``[P]``, one for each parameter of the network, by name."""
        return split(theta, self.shapes)

    def distance(self, waypoint: Waypoint) -> Tensor:
        """``|student - expert|^2 / |start - expert|^2`` at a waypoint. ``[]``."""
        return ops.param_distance(
            self.student[waypoint.step], self.expert[waypoint.epoch], self.start
        )


@runtime_checkable
class Term(Protocol):
    """One summand of the matching loss."""

    def waypoints(self, steps: int, epochs: int) -> Sequence[Waypoint]:
        """Return the points that the term looks at, of ``N`` steps and ``M`` epochs."""

    def loss(self, course: Course) -> Tensor:
        """Return its share of the loss. ``[]``; differentiable in the student's parameters."""


@dataclass(frozen=True)
class Final:
    """The end of the segment, ``|theta_N - theta*_{s+M}|^2 / |theta_0 - theta*_{s+M}|^2`` (MTT)."""

    def waypoints(self, steps: int, epochs: int) -> Sequence[Waypoint]:
        """Step ``N`` and epoch ``M``."""
        return [Waypoint(steps, epochs)]

    def loss(self, course: Course) -> Tensor:
        """Return the relative squared distance at the end."""
        return course.distance(Waypoint(course.steps, course.epochs))


@dataclass(frozen=True)
class Intermediate:
    """The epochs in between (AST): for ``j = 1 .. M-1`` the same at step ``floor(N / M) j``.

    Attributes:
        weighting: ``"equal"`` for weights of 1, ``"rising"`` for ``j / M``.
    """

    weighting: Literal["equal", "rising"] = "equal"

    def waypoints(self, steps: int, epochs: int) -> Sequence[Waypoint]:
        """Step ``floor(N / M) j`` with epoch ``j``.

        Raises:
            UserError: There are fewer steps than epochs, so that a point would have no step.
        """
        if steps < epochs:
            raise UserError(
                f"--terms intermediate compares the student after every epoch of the expert, but "
                f"--student-steps {steps} is below --expert-epochs {epochs}; take more steps"
            )
        return [Waypoint(steps // epochs * epoch, epoch) for epoch in range(1, epochs)]

    def loss(self, course: Course) -> Tensor:
        """Return the weighted sum of the distances; 0 for ``M = 1``, with no epoch in between."""
        total = course.start.new_zeros(())
        for waypoint in self.waypoints(course.steps, course.epochs):
            weight = 1.0 if self.weighting == "equal" else waypoint.epoch / course.epochs
            total = total + weight * course.distance(waypoint)
        return total


#: The terms that have a name.
TERMS: dict[str, Term] = {
    "final": Final(),
    "intermediate": Intermediate("equal"),
    "intermediate-rising": Intermediate("rising"),
}


def find_term(name: str) -> Term:
    """Return the term of a name.

    Args:
        name: One of :data:`TERMS`, or ``package.module:NAME`` of an object, or of a class without
            arguments, that has the methods of :class:`Term`.

    Raises:
        UserError: There is none.
    """
    found = named("--terms", "term", name, TERMS)
    with blamed(f"--terms {name}"):
        term = found() if isinstance(found, type) else found
    if not isinstance(term, Term):
        raise UserError(
            f"--terms {name} should have the methods waypoints(steps, epochs) and loss(course), "
            f"but {type(term).__name__} lacks one"
        )
    return term
