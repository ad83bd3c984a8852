"""PAD's curriculum: the part of each class that an epoch trains on. Does not import torch."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from trajmatch.errors import UserError
from trajmatch.schema import Fraction, PositiveInt

_GROWTH = tuple[Annotated[float, Meta(gt=0, le=1)], PositiveInt]
_DROPS = tuple[tuple[PositiveInt, Fraction], ...]


class Schedule(NamedTuple):
    """Curriculum of PAD (arXiv 2408.03360): the part of each class that an epoch sees.

    Epochs count from 0, as in PAD's code. Epoch ``e`` sees the easiest fraction
    ``min(1, first + (1 - first) e / whole)``; PAD calls ``first`` IR and ``whole`` AEE. ``drops``
    are ascending pairs ``(E, R)``: epochs after ``E`` leave out the easiest fraction ``R``.
    """

    first: float = 1.0
    whole: int = 1
    drops: tuple[tuple[int, float], ...] = ()

    @classmethod
    def parse(cls, curriculum: str | None, drop_easy: str | None) -> Schedule:
        """Parse ``--curriculum`` and ``--drop-easy``; None means that no image is left out."""
        grows, drops = curriculum or "1,1", drop_easy.split(",") if drop_easy else []
        try:
            first, whole = msgspec.convert(grows.split(","), _GROWTH, strict=False)
        except msgspec.ValidationError as error:
            wanted = "a fraction above 0 and at most 1, and an epoch of at least 1, as in 0.75,20"
            raise UserError(f"--curriculum should be IR,AEE: {wanted}, but is {grows}") from error
        try:
            pairs = msgspec.convert([each.split(":") for each in drops], _DROPS, strict=False)
        except msgspec.ValidationError as error:
            wanted = "E:R,...: epochs, each with a fraction below 1, as in 40:0.1,60:0.2"
            raise UserError(f"--drop-easy should be {wanted}, but is {drop_easy}") from error
        # Drops ascend strictly and start no earlier than `whole`, the first epoch with all images.
        epochs = [whole - 1, *(epoch for epoch, _ in pairs)]
        if epochs != sorted(set(epochs)):
            raise UserError(
                f"the epochs of --drop-easy {drop_easy} should ascend and start no earlier than "
                f"--curriculum has reached all images (epoch {whole})"
            )
        return cls(first, whole, pairs)

    def part(self, epoch: int) -> tuple[float, float]:
        """Return bounds (low, high) of an epoch's part: 0 is the easiest image, 1 the hardest."""
        dropped = [share for after, share in self.drops if epoch > after]
        if dropped:
            # The latest pair replaces the earlier ones.
            return dropped[-1], 1.0
        return 0.0, min(1.0, self.first + (1 - self.first) * epoch / self.whole)
