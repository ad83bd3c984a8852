"""Distance at the nearest step (ATT)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trajmatch import ops
from trajmatch.distill.terms.course import Course, Waypoint


@dataclass(frozen=True)
class Automatic:
    """Distance at the student step nearest to the expert's end (ATT, Liu et al., ECCV 2024).

    ``|theta_n - theta*_{s+M}|^2 / |theta_0 - theta*_{s+M}|^2`` at the ``n`` of ``1 .. N`` with the
    smallest ``|theta_n - theta*_{s+M}|_1``, the later of equals. No gradient flows through the
    choice, or into the steps after ``n``.
    """

    def waypoints(self, steps: int, epochs: int) -> list[Waypoint]:
        """Return every step, with epoch ``M``."""
        return [Waypoint(step, epochs) for step in range(1, steps + 1)]

    def loss(self, course: Course) -> Tensor:
        """Return the relative squared distance at the nearest step."""
        target = course.expert[course.epochs]
        backwards = [course.student[step] for step in range(course.steps, 0, -1)]
        with torch.no_grad():
            far = [(theta - target).abs().sum(dtype=torch.float64) for theta in backwards]
            nearest = torch.stack(far).argmin()  # the first of equals: the later step
        # Reading the number of the step would wait for the device, so select there.
        chosen = torch.stack(backwards).index_select(0, nearest.view(1))
        return ops.param_distance(chosen.view(-1), target, course.start)
