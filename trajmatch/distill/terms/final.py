"""Distance at the end of the segment (MTT)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from trajmatch.distill.terms.course import AtTheEnd, Course


@dataclass(frozen=True)
class Final(AtTheEnd):
    """Distance at the end, ``|theta_N - theta*_{s+M}|^2 / |theta_0 - theta*_{s+M}|^2`` (MTT)."""

    def loss(self, course: Course) -> Tensor:
        """Return the relative squared distance at the end."""
        return course.distance(course.end)
