"""The step that comes nearest (ATT)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trajmatch import ops
from trajmatch.distill.terms.course import Course, Waypoint


@dataclass(frozen=True)
class Automatic:
    """The distance at the student's step nearest to the expert's end (ATT, Liu et al., ECCV 2024).

    ``|theta_n - theta*_{s+M}|^2 / |theta_0 - theta*_{s+M}|^2`` with the ``n`` of ``1 .. N`` for
    which the sum of absolute differences ``|theta_n - theta*_{s+M}|_1`` is smallest, the later one
    of equal ones. There is no gradient through the choice, and none for the steps after ``n``.
    """

    def waypoints(self, steps: int, epochs: int) -> list[Waypoint]:
        """Every step, with epoch ``M``."""
        return [Waypoint(step, epochs) for step in range(1, steps + 1)]

    def loss(self, course: Course) -> Tensor:
        """Return the relative squared distance at the step, whose number stays on the device."""
        target = course.expert[course.epochs]
        backwards = [course.student[step] for step in range(course.steps, 0, -1)]
        with torch.no_grad():
            far = [(theta - target).abs().sum(dtype=torch.float64) for theta in backwards]
            nearest = torch.stack(far).argmin()  # the first of equal ones
        chosen = torch.stack(backwards).index_select(0, nearest.view(1))
        return ops.param_distance(chosen.view(-1), target, course.start)
