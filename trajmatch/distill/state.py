"""State of a run: everything that one outer iteration passes on to the next."""

from dataclasses import dataclass, field
from typing import Annotated, Any

from msgspec import Meta
from torch import Tensor

from trajmatch.distill.objectives import Draw, Draws
from trajmatch.distill.parameters import STEP_SIZE, OuterParameter, values
from trajmatch.images.parametrisation import Tensors
from trajmatch.schema import Count, NonNegative

#: Number of recent gradient norms whose median detects spikes.
USUAL = 100


@dataclass(frozen=True)
class Best:
    """Best iteration so far; ``accuracy`` is in percent, or a mean squared error for targets."""

    iteration: Count
    accuracy: float


@dataclass(kw_only=True)
class Progress:
    """Counters and scores of a run.

    Attributes:
        iteration: Number of outer iterations done.
        applied: Number of updates applied.
        refusals: Number of updates refused in a row.
        skips: Number of updates in a row that ``--skip-above`` skipped.
        gradient_norms: Recent norms of the images' gradient, even if the update was not applied.
        best: Best evaluated iteration; None with ``--select last``.
        scores: Results of all evaluations.
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


@dataclass(frozen=True)
class Prepared:
    """Tasks of an outer iteration, made ahead.

    Attributes:
        random_state: ``Draws.state_dict`` before the random choices.
        draws: Random choices of all tasks.
        tasks: This rank's tasks.
    """

    random_state: Tensors
    draws: list[Draw]
    tasks: list[Any]


@dataclass(kw_only=True)
class State(Progress):
    """State of a run; checkpoints have all of it except ``prepared``.

    Attributes:
        parameters: Outer parameters, by name.
        draws: Source of random choices, already advanced past those of ``prepared``.
        average: Moving averages of the images' parameters, by name; empty without ``--ema``.
        best_values: Outer parameters after the best iteration, by name.
        prepared: Tasks of the next iteration, if they are made already.
    """

    parameters: dict[str, OuterParameter]
    draws: Draws
    average: dict[str, Tensor] = field(default_factory=dict)
    best_values: Tensors = field(default_factory=dict)
    prepared: Prepared | None = None

    @property
    def random_state(self) -> Tensors:
        """Random state before the choices of the next iteration."""
        return self.draws.state_dict() if self.prepared is None else self.prepared.random_state

    @property
    def step_size(self) -> float:
        """Student's step size eta."""
        return self.parameters[STEP_SIZE].value.item()

    @property
    def result(self) -> dict[str, Tensor]:
        """Outer parameters to evaluate and write; with ``--ema``, images are moving averages."""
        return {**values(self.parameters), **self.average}
