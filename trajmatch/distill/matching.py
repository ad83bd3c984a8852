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
        """List the points at which the terms compare a student of ``N`` steps with the expert.

        Raises:
            UserError: A point lies outside the segment, or is no :class:`Waypoint`.
        """
        points = [point for term in self.terms for point in term.waypoints(steps, self.epochs)]
        for point in points:
            if not isinstance(point, Waypoint):
                raise UserError(
                    f"waypoints of a matching term should return trajmatch.distill.terms.Waypoint "
                    f"objects, but returned {point!r:.100}"
                )
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

        Raises:
            UserError: A term returns something else than one number in a tensor, or the loss does
                not depend on the student.
        """
        expert = {**segment.between, self.epochs: segment.target}
        course = Course(segment.start, student, expert, steps, self.epochs)
        losses = [_loss_of(term, course) for term in self.terms]
        total = losses[0]
        for loss in losses[1:]:
            total = total + loss
        if not total.requires_grad and any(each.requires_grad for each in student.values()):
            raise UserError(
                "the matching loss does not depend on the student's parameters, so that nothing "
                "could be learned from it; a matching term of your own must not detach them"
            )
        return total


def _loss_of(term: Term, course: Course) -> Tensor:
    loss = term.loss(course)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        came = list(loss.shape) if isinstance(loss, Tensor) else repr(loss)
        raise UserError(
            f"the matching term {type(term).__name__} should return its loss as a tensor of one "
            f"number that can be differentiated, but returned {came}; leave out .item() and sum "
            "up what has several numbers"
        )
    return loss
