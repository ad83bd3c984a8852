"""State of a run: everything that passes from one outer iteration to the next."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from msgspec import Meta
from torch import Tensor

from trajmatch.distill.objectives import Draws
from trajmatch.distill.parameters import STEP_SIZE, OuterParameter, values
from trajmatch.images.parametrisation import Tensors
from trajmatch.schema import Count, NonNegative

#: Number of recent gradient norms whose median detects spikes.
USUAL = 100


@dataclass(frozen=True)
class Best:
    """Best iterate so far; ``accuracy`` is a mean in percent, or a mean squared error."""

    iteration: Count
    accuracy: float


@dataclass(kw_only=True)
class Progress:
    """Numbers in a run's state.

    Attributes:
        iteration: Outer iterations done.
        applied: Number of updates applied.
        refusals: Updates refused in a row.
        skips: Updates in a row skipped by ``--skip-above``.
        gradient_norms: Last gradient norms of the images, applied or not; at most :data:`USUAL`.
        best: Best evaluated iterate; None with ``--select last``.
        scores: All evaluations.
    """

    iteration: Count = 0
    applied: Count = 0
    refusals: Count = 0
    skips: Count = 0
    gradient_norms: Annotated[list[NonNegative], Meta(max_length=USUAL)] = field(
        default_factory=list
    )
    best: Best | None = None
    scores: list[dict[str, Any]] = field(default_factory=list)


@dataclass(kw_only=True)
class State(Progress):
    """State of a run, as saved in checkpoints.

    Attributes:
        parameters: Outer parameters, by name.
        draws: Random state.
        average: Moving average of the images' parameters, by name; empty without ``--ema``.
        best_values: Outer parameters of the best iterate, by name.
    """

    parameters: dict[str, OuterParameter]
    draws: Draws
    average: dict[str, Tensor] = field(default_factory=dict)
    best_values: Tensors = field(default_factory=dict)

    @property
    def step_size(self) -> float:
        """The student's step size eta."""
        return self.parameters[STEP_SIZE].value.item()

    @property
    def result(self) -> dict[str, Tensor]:
        """Values that the run would return now, by name: moving averages where they exist."""
        return {**values(self.parameters), **self.average}
