"""The matching loss: how far the student ended from where the expert went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from trajmatch.distill.terms import Course, Final, Term, Waypoint
from trajmatch.errors import UserError


@dataclass(frozen=True)
class Segment:
    """A piece of an expert's trajectory.

    Attributes:
        start: Where the student starts: the expert's parameters at the start epoch, perturbed where
            the run perturbs them. ``[P]``.
        target: The expert's parameters ``M`` epochs later. ``[P]``.
        between: Those at epochs in between that the matching loss looks at, by epochs after the
            start. ``[P]`` each.
    """

    start: Tensor
    target: Tensor
    between: Mapping[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class MatchingLoss:
    """The sum of some terms over segments of one length.

    Attributes:
        terms: At least one.
        epochs: Length ``M`` of the segments in epochs of the expert.
    """

    terms: tuple[Term, ...] = (Final(),)
    epochs: int = 1

    def waypoints(self, steps: int) -> list[Waypoint]:
        """The points at which the terms compare a student of ``N`` steps with the expert.

        Raises:
            UserError: A point lies outside the segment.
        """
        points = [point for term in self.terms for point in term.waypoints(steps, self.epochs)]
        for point in points:
            if not (1 <= point.step <= steps and 1 <= point.epoch <= self.epochs):
                raise UserError(
                    f"a matching term asks for {point}, but a segment has steps 1 to {steps} and "
                    f"epochs 1 to {self.epochs}"
                )
        return points

    def student_steps(self, steps: int) -> list[int]:
        """Steps after which the parameters of a student of ``N`` steps are needed, ascending."""
        return sorted({point.step for point in self.waypoints(steps)})

    def between(self, steps: int) -> list[int]:
        """Epochs after the start, other than ``M``, at which the expert is needed, ascending."""
        return sorted({point.epoch for point in self.waypoints(steps)} - {self.epochs})

    def __call__(self, segment: Segment, student: Mapping[int, Tensor], steps: int) -> Tensor:
        """The loss of one match.

        Args:
            segment: What is matched.
            student: The student's parameters after the steps of :meth:`student_steps`. ``[P]``.
            steps: Student steps ``N``.

        Returns:
            The loss. ``[]``; differentiable in the student's parameters.
        """
        expert = {**segment.between, self.epochs: segment.target}
        course = Course(segment.start, student, expert, steps, self.epochs)
        losses = [term.loss(course) for term in self.terms]
        total = losses[0]
        for loss in losses[1:]:
            total = total + loss
        return total
