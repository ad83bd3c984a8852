"""Distance over the parameters that are still far from the expert (EDF)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from trajmatch.distill.terms.course import AtTheEnd, Course
from trajmatch.schema import Fraction


@dataclass(frozen=True)
class Dropout(AtTheEnd):
    """Distance at the end without the smallest differences (EDF, Wang et al., CVPR 2025).

    Common pattern dropout: leaves the ``floor(r P)`` parameters with the smallest
    ``(theta_N - theta*_{s+M})^2`` out of both sums, the first of equals. No gradient flows through
    the choice. ``ratio`` in [0, 1) is ``r``.
    """

    ratio: Fraction

    def loss(self, course: Course) -> Tensor:
        """Return the relative squared distance of the kept parameters."""
        end, target = course.student[course.steps].detach(), course.expert[course.epochs]
        dropped = (end - target).abs().sort(stable=True).indices[: int(self.ratio * len(end))]
        return course.distance(course.end, end.new_ones(end.shape).index_fill(0, dropped, 0.0))
