"""Built-in matching terms."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor

from trajmatch import ops
from trajmatch.distill.terms.course import AtTheEnd, Course, Waypoint
from trajmatch.errors import UserError
from trajmatch.schema import Fraction, NonNegative, setting


@dataclass(frozen=True)
class Final(AtTheEnd):
    """Distance at the end, ``|theta_N - theta*_{s+M}|^2 / |theta_0 - theta*_{s+M}|^2`` (MTT)."""

    def loss(self, course: Course) -> Tensor:
        """Return the relative squared distance at the end."""
        return course.distance(course.end)


@dataclass(frozen=True)
class Intermediate:
    """Weighted sum of the distances at the expert's epochs in between (AST).

    At epoch ``j``, from 1 to ``M - 1``, the student has taken ``floor(N / M) j`` steps.
    """

    weighting: Literal["equal", "rising"] = "equal"  # weights of 1, or of j / M

    def waypoints(self, steps: int, epochs: int) -> Sequence[Waypoint]:
        """Return a waypoint for each epoch ``j`` from 1 to ``M-1``; UserError if ``N < M``."""
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


@dataclass(frozen=True)
class Automatic:
    """Distance at the student step nearest to the expert's end (ATT, Liu et al., ECCV 2024).

    The distance is ``|theta_n - theta*_{s+M}|^2 / |theta_0 - theta*_{s+M}|^2``, where ``n`` is the
    step in ``1 .. N`` with the smallest ``|theta_n - theta*_{s+M}|_1``; among equals, the last. No
    gradient flows through the choice of ``n``, or into later steps.
    """

    def waypoints(self, steps: int, epochs: int) -> list[Waypoint]:
        """Return a waypoint at every step, with epoch ``M``."""
        return [Waypoint(step, epochs) for step in range(1, steps + 1)]

    def loss(self, course: Course) -> Tensor:
        """Return the relative squared distance at the nearest step."""
        target = course.expert[course.epochs]
        # Last step first: argmin returns the first of equals, which is then the latest step.
        backwards = [course.student[step] for step in range(course.steps, 0, -1)]
        with torch.no_grad():
            far = [(theta - target).abs().sum(dtype=torch.float64) for theta in backwards]
            nearest = torch.stack(far).argmin()
        # Select on the device, because reading the number of the step would wait for the device.
        chosen = torch.stack(backwards).index_select(0, nearest.view(1))
        return ops.param_distance(chosen.view(-1), target, course.start)


@dataclass(frozen=True)
class Deep(AtTheEnd):
    """Distance at the end over the deep parameters (PAD, Li et al., 2024).

    Both squared distances of :class:`Final` leave out the first ``floor(alpha P)`` of the network's
    ``P`` parameters; the cut may fall inside a tensor. ``alpha`` in [0, 1) is PAD's
    ``depth_ratio``.
    """

    alpha: Fraction

    def loss(self, course: Course) -> Tensor:
        """Return the relative squared distance of the deep parameters."""
        first = int(self.alpha * len(course.start))
        end, target = course.student[course.steps], course.expert[course.epochs]
        return ops.param_distance(end[first:], target[first:], course.start[first:])


@dataclass(frozen=True)
class Dropout(AtTheEnd):
    """Distance at the end without the smallest differences (EDF, Wang et al., CVPR 2025).

    Both squared distances of :class:`Final` leave out the ``floor(ratio P)`` of ``P`` parameters
    with the smallest ``(theta_N - theta*_{s+M})^2``; among equals, the first are left out. No
    gradient flows through this choice. ``ratio`` is in [0, 1). EDF calls this common pattern
    dropout.
    """

    ratio: Fraction

    def loss(self, course: Course) -> Tensor:
        """Return the relative squared distance of the kept parameters."""
        end, target = course.student[course.steps].detach(), course.expert[course.epochs]
        # Absolute values sort like squares. The stable sort drops the first among equals.
        dropped = (end - target).abs().sort(stable=True).indices[: int(self.ratio * len(end))]
        return course.distance(course.end, end.new_ones(end.shape).index_fill(0, dropped, 0.0))


class Layers(AtTheEnd):
    """Distance at the end with a weight ``w_l`` for each parameter tensor ``l``.

    ``sum_l w_l |theta_N,l - theta*_{s+M},l|^2 / sum_l w_l |theta_0,l - theta*_{s+M},l|^2``.
    ``weights`` has a weight for each shell pattern of parameter names, such as ``classifier.*``.
    The last pattern that matches a name counts; names without a match have weight 1.
    """

    def __init__(self, *unnamed: object, **weights: float) -> None:
        if unnamed or not weights:
            raise UserError(
                "--terms layers should be layers:PATTERN=WEIGHT,..., e.g. layers:classifier.*=2"
            )
        name = "--terms layers: the weight of"
        self._weights = {k: setting(w, NonNegative, f"{name} {k}") for k, w in weights.items()}

    def loss(self, course: Course) -> Tensor:
        """Return the distance; UserError if a pattern fits no tensor, or all weights are 0."""
        found = {name: 1.0 for name in course.shapes}
        for pattern, weight in self._weights.items():
            if not (fitting := [name for name in found if fnmatchcase(name, pattern)]):
                raise UserError(
                    f"--terms layers: no parameter of the network fits {pattern!r}; it has "
                    f"{', '.join(found)}"
                )
            # Later patterns overwrite earlier ones.
            found.update(dict.fromkeys(fitting, weight))
        if not any(found.values()):
            raise UserError("--terms layers: all weights are 0; set at least one above 0")
        # Repeat each tensor's weight for all of its parameters: [P] in total.
        sizes = [course.shapes[name].numel() for name in found]
        rows = [course.start.new_full((n,), w) for n, w in zip(sizes, found.values(), strict=True)]
        return course.distance(course.end, torch.cat(rows))
