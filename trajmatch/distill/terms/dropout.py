"""The parameters that are still far from the expert (EDF)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from trajmatch.distill.terms.course import AtTheEnd, Course
from trajmatch.schema import Fraction


@dataclass(frozen=True)
class Dropout(AtTheEnd):
    """The distance at the end without the smallest differences (EDF, Wang et al., CVPR 2025).

    Common pattern dropout: the ``floor(r P)`` parameters whose squared difference at the end,
    ``(theta_N - theta*_{s+M})^2``, is smallest are left out of both sums; of equal ones those that
    come first. There is no gradient through the choice.

    Attributes:
        ratio: ``r``, at least 0 and below 1.
    """

    ratio: Fraction

    def loss(self, course: Course) -> Tensor:
        """Return the relative squared distance of the parameters that are kept."""
        end, target = course.student[course.steps].detach(), course.expert[course.epochs]
        dropped = (end - target).abs().sort(stable=True).indices[: int(self.ratio * len(end))]
        return course.distance(course.end, end.new_ones(end.shape).index_fill(0, dropped, 0.0))
