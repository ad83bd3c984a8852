"""The deep part of the network alone (PAD)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from trajmatch import ops
from trajmatch.distill.terms.course import AtTheEnd, Course
from trajmatch.schema import Fraction


@dataclass(frozen=True)
class Deep(AtTheEnd):
    """The distance at the end over the deep parameters (PAD, Li et al., 2024).

    Of the ``P`` parameters in the network's order the first ``floor(alpha P)`` are left out of both
    sums. The cut may fall inside a tensor.

    Attributes:
        alpha: Share that is left out, at least 0 and below 1 (PAD: depth_ratio).
    """

    alpha: Fraction

    def loss(self, course: Course) -> Tensor:
        """Return the relative squared distance of the deep parameters."""
        first = int(self.alpha * len(course.start))
        end, target = course.student[course.steps], course.expert[course.epochs]
        return ops.param_distance(end[first:], target[first:], course.start[first:])
