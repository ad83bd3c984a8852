"""Distance with a weight for every layer."""

from __future__ import annotations

from fnmatch import fnmatchcase

import torch
from torch import Tensor

from trajmatch.distill.terms.course import AtTheEnd, Course
from trajmatch.errors import UserError
from trajmatch.schema import NonNegative, setting


class Layers(AtTheEnd):
    """Distance at the end with a weight ``w_l`` for each parameter tensor ``l``.

    ``sum_l w_l |theta_N,l - theta*_{s+M},l|^2 / sum_l w_l |theta_0,l - theta*_{s+M},l|^2``.
    ``weights`` go by shell patterns of names (``classifier.*``): the last match counts, default 1.
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
            fitting = [name for name in found if fnmatchcase(name, pattern)]
            if not fitting:
                raise UserError(
                    f"--terms layers: no parameter of the network fits {pattern!r}; it has "
                    f"{', '.join(found)}"
                )
            found.update(dict.fromkeys(fitting, weight))
        if not any(found.values()):
            raise UserError("--terms layers: all weights are 0, so that nothing would be compared")
        sizes = [course.shapes[name].numel() for name in found]
        rows = [course.start.new_full((n,), w) for n, w in zip(sizes, found.values(), strict=True)]
        return course.distance(course.end, torch.cat(rows))
