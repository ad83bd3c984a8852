"""Distance over the deep part of the network (PAD)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from trajmatch import ops
from trajmatch.distill.terms.course import AtTheEnd, Course
from trajmatch.schema import Fraction


@dataclass(frozen=True)
class Deep(AtTheEnd):
    """Distance at the end over the deep parameters (PAD, Li et al., 2024).

    Leaves the first ``floor(alpha P)`` of ``P`` parameters, in the network's order, out of both
    sums; the cut may fall inside a tensor. ``alpha`` in [0, 1) is PAD's depth_ratio.
    """

    alpha: Fraction

    def loss(self, course: Course) -> Tensor:
        """Return the relative squared distance of the deep parameters."""
        first = int(self.alpha * len(course.start))
        end, target = course.student[course.steps], course.expert[course.epochs]
        return ops.param_distance(end[first:], target[first:], course.start[first:])
