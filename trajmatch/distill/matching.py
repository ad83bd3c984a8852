"""How far the student ended from where the expert went."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from trajmatch import ops


@dataclass(frozen=True)
class Segment:
    """A piece of an expert's trajectory.

    Attributes:
        start: The expert's parameters at the start epoch, where the student starts too. ``[P]``.
        target: The expert's parameters ``M`` epochs later. ``[P]``.
    """

    start: Tensor
    target: Tensor


def matching_loss(student: Tensor, segment: Segment) -> Tensor:
    """Squared distance to the target, relative to the distance that the expert travelled.

    ``|student - target|^2 / |start - target|^2`` (MTT).

    Args:
        student: Parameters after the last student step. ``[P]``, dtype and device of the segment.
        segment: What to match.

    Returns:
        The loss. ``[]``. Differentiable in ``student``.
    """
    return ops.param_distance(student, segment.target, segment.start)
