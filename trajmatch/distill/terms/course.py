"""Interface of terms, and the data of a match that they compare."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from trajmatch import ops
from trajmatch.images.parametrisation import Tensors
from trajmatch.networks.flat import split
from trajmatch.schema import settle


@dataclass(frozen=True)
class Waypoint:
    """Point at which student and expert are compared."""

    step: int  # student steps done, 1 to N
    epoch: int  # expert epochs after the start epoch, 1 to M


@dataclass(frozen=True)
class Course:
    """Data of a match that a term compares.

    Attributes:
        start: theta_0 ``[P]``, the student's start, perturbed with ``--perturb``.
        student: Student parameters ``[P]`` by step, at all waypoints; differentiable.
        expert: Expert parameters ``[P]`` by epoch after the start epoch, at all waypoints.
        steps: Student steps ``N``.
        epochs: Expert epochs ``M``.
        shapes: Shapes of the network's parameters by name, in the order of the vectors.
        iteration: Outer iterations done. In a run this is a tensor ``[]``, int64, for CUDA graphs.
        memory: Tensors that the term remembers, by name.
    """

    start: Tensor
    student: Mapping[int, Tensor]
    expert: Mapping[int, Tensor]
    steps: int
    epochs: int
    shapes: Mapping[str, torch.Size] = field(default_factory=dict)
    iteration: int | Tensor = 0
    memory: Tensors = field(default_factory=dict)

    def split(self, theta: Tensor) -> dict[str, Tensor]:
        """Return views of a vector ``[P]``, one per parameter of the network, by name."""
        return split(theta, self.shapes)

    @property
    def end(self) -> Waypoint:
        """Waypoint at step ``N`` and epoch ``M``."""
        return Waypoint(self.steps, self.epochs)

    def distance(self, waypoint: Waypoint, weights: Tensor | None = None) -> Tensor:
        """Return ``|student - expert|^2 / |start - expert|^2`` at a waypoint of the term. ``[]``.

        ``weights [P]`` (at least 0, without a gradient) multiply the squares in both sums.
        """
        vectors = self.student[waypoint.step], self.expert[waypoint.epoch], self.start
        if weights is not None:
            # w d^2 = (sqrt(w) d)^2, so scaled vectors give the weighted sums.
            roots = weights.to(self.start.dtype).sqrt()
            vectors = vectors[0] * roots, vectors[1] * roots, vectors[2] * roots
        return ops.param_distance(*vectors)


@runtime_checkable
class Term(Protocol):
    """One summand of the matching loss."""

    def waypoints(self, steps: int, epochs: int) -> Sequence[Waypoint]:
        """Return the points to compare, given the numbers of student steps and expert epochs."""

    def loss(self, course: Course) -> Tensor:
        """Return the loss ``[]``, differentiable with respect to the student's parameters."""


@runtime_checkable
class Remembering(Term, Protocol):
    """Term that carries tensors from one outer iteration to the next.

    A skipped update leaves the tensors unchanged. With several matches, floating-point tensors are
    averaged over the matches; others take the elementwise maximum (bools: any).
    """

    def memory(self, shapes: Mapping[str, torch.Size]) -> Tensors:
        """Return initial values by name, given the shapes of the network's parameters."""

    def remember(self, course: Course) -> Tensors:
        """Return next values, with the same shapes and dtypes; called without gradients."""


@dataclass(frozen=True)
class AtTheEnd:
    """Base class of terms that compare the end of a match; checks the types of settings."""

    def __post_init__(self) -> None:
        settle(self, lambda name: f"--terms {type(self).__name__.lower()}: {name}")

    def waypoints(self, steps: int, epochs: int) -> list[Waypoint]:
        """Return the waypoint at step ``N`` and epoch ``M``."""
        return [Waypoint(steps, epochs)]
