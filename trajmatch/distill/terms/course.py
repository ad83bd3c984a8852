"""The part of a match that a term sees, and what a term is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from trajmatch import ops
from trajmatch.networks.flat import split
from trajmatch.schema import settle


@dataclass(frozen=True)
class Waypoint:
    """A point at which student and expert are compared.

    Attributes:
        step: Steps that the student has done, 1 to ``N``.
        epoch: Epochs that the expert has gone beyond the start epoch, 1 to ``M``.
    """

    step: int
    epoch: int


@dataclass(frozen=True)
class Course:
    """The part of a match that a term sees.

    Attributes:
        start: theta_0, where the student started; perturbed, where the run perturbs it. ``[P]``.
        student: Parameters of the student after the steps of all waypoints. ``[P]`` each;
            differentiable.
        expert: Parameters of the expert at the epochs of all waypoints, counted from the start
            epoch. ``[P]`` each.
        steps: Student steps ``N``.
        epochs: Expert epochs ``M``.
        shapes: Shapes of the network's parameters by name, in the order of the vectors.
        iteration: Outer iterations done; in a run ``[]``, int64, since a recording reads it.
        memory: Tensors that the term remembers from earlier iterations, by name.
    """

    start: Tensor
    student: Mapping[int, Tensor]
    expert: Mapping[int, Tensor]
    steps: int
    epochs: int
    shapes: Mapping[str, torch.Size] = field(default_factory=dict)
    iteration: int | Tensor = 0
    memory: Mapping[str, Tensor] = field(default_factory=dict)

    def split(self, theta: Tensor) -> dict[str, Tensor]:
        """Return views of a vector ``[P]``, one for each parameter of the network, by name."""
        return split(theta, self.shapes)

    @property
    def end(self) -> Waypoint:
        """Step ``N`` and epoch ``M``."""
        return Waypoint(self.steps, self.epochs)

    def distance(self, waypoint: Waypoint, weights: Tensor | None = None) -> Tensor:
        """``|student - expert|^2 / |start - expert|^2`` at a waypoint.

        Args:
            waypoint: One that the term has asked for.
            weights: Of the squares in both sums, at least 0; without a gradient. ``[P]``.

        Returns:
            The distance. ``[]``.
        """
        vectors = self.student[waypoint.step], self.expert[waypoint.epoch], self.start
        if weights is not None:
            roots = weights.to(self.start.dtype).sqrt()
            vectors = vectors[0] * roots, vectors[1] * roots, vectors[2] * roots
        return ops.param_distance(*vectors)


@runtime_checkable
class Term(Protocol):
    """One summand of the matching loss."""

    def waypoints(self, steps: int, epochs: int) -> Sequence[Waypoint]:
        """Return the points that the term looks at, of ``N`` steps and ``M`` epochs."""

    def loss(self, course: Course) -> Tensor:
        """Return its share of the loss. ``[]``; differentiable in the student's parameters."""


@runtime_checkable
class Remembering(Term, Protocol):
    """A term that remembers tensors from one outer iteration to the next.

    They change with the images: where an update is left out, so is what it would have remembered.
    Of several matches the next value is the mean of theirs for floating-point tensors, and the
    largest of theirs, element by element, for others (for bools: of any).
    """

    def memory(self, shapes: Mapping[str, torch.Size]) -> Mapping[str, Tensor]:
        """Return the first values by name, given the shapes of the network's parameters."""

    def remember(self, course: Course) -> Mapping[str, Tensor]:
        """Return the next values, in shape and dtype of the first; called without gradients."""


@dataclass(frozen=True)
class AtTheEnd:
    """Base of terms that compare the ends of the segment, and whose settings have checked types."""

    def __post_init__(self) -> None:
        """Check the settings."""
        settle(self, lambda name: f"--terms {type(self).__name__.lower()}: {name}")

    def waypoints(self, steps: int, epochs: int) -> list[Waypoint]:
        """Step ``N`` and epoch ``M``."""
        return [Waypoint(steps, epochs)]
