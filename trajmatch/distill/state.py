"""All that an outer loop carries from one iteration to the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from msgspec import Meta
from torch import Tensor

from trajmatch.distill.objectives import Draws
from trajmatch.distill.parameters import STEP_SIZE, OuterParameter, values
from trajmatch.schema import Count, NonNegative

#: Gradients by whose median it is judged how large they usually are.
USUAL = 100


@dataclass(frozen=True)
class Best:
    """The iteration and the accuracy of the best iterate.

    Attributes:
        iteration: Outer iterations done.
        accuracy: Mean accuracy in percent, or mean squared error, by which it was chosen.
    """

    iteration: Count
    accuracy: float


@dataclass(kw_only=True)
class Progress:
    """The numbers of a run's state.

    Attributes:
        iteration: Outer iterations done.
        applied: How many of them changed the images.
        refusals: Refused updates in a row, up to now.
        skips: Updates in a row, up to now, that a matching loss above the limit left out.
        gradient_norms: Norms of the last gradients of the images, :data:`USUAL` at most, whether
            they were followed or not.
        best: The best iterate evaluated up to now, where the result is chosen by accuracy.
        scores: Results of all evaluations up to now.
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
    """The state of a run, which a checkpoint keeps.

    Attributes:
        parameters: Outer parameters by name: the images' parameters, labels and step size.
        draws: The random state.
        average: Moving average of the images' parameters, by name; empty where there is none.
        best_values: Outer parameters of the best iterate, by name.
    """

    parameters: dict[str, OuterParameter]
    draws: Draws
    average: dict[str, Tensor] = field(default_factory=dict)
    best_values: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def step_size(self) -> float:
        """The student's step size eta."""
        return self.parameters[STEP_SIZE].value.item()

    @property
    def result(self) -> dict[str, Tensor]:
        """The values that the run would give if it ended now, by name; averages if any."""
        return {**values(self.parameters), **self.average}
