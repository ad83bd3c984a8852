"""Distances at the epochs in between (AST)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from trajmatch.distill.terms.course import Course, Waypoint
from trajmatch.errors import UserError


@dataclass(frozen=True)
class Intermediate:
    """Distances at epochs ``j = 1 .. M-1``, after student step ``floor(N / M) j`` (AST)."""

    weighting: Literal["equal", "rising"] = "equal"  # weights of 1, or of j / M

    def waypoints(self, steps: int, epochs: int) -> Sequence[Waypoint]:
        """Return step ``floor(N / M) j`` with epoch ``j``; UserError if ``N < M``."""
        if steps < epochs:
            raise UserError(
                f"--terms intermediate compares the student after every epoch of the expert, but "
                f"--student-steps {steps} is below --expert-epochs {epochs}; take more steps"
            )
        return [Waypoint(steps // epochs * epoch, epoch) for epoch in range(1, epochs)]

    def loss(self, course: Course) -> Tensor:
        """Return the weighted sum of the distances; 0 for ``M = 1``."""
        total = course.start.new_zeros(())
        for waypoint in self.waypoints(course.steps, course.epochs):
            weight = 1.0 if self.weighting == "equal" else waypoint.epoch / course.epochs
            total = total + weight * course.distance(waypoint)
        return total
