"""Objectives: what the synthetic set is learned for.

An objective draws what one outer iteration does and differentiates it. Recording CUDA graphs,
leaner plans and the division among processes are written around any of them. Each is a class in a
file of its own, with a line in ``distill/problem.py``; ``package.module:NAME`` brings one of a
user's own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from trajmatch.distill.parameters import of_memory
from trajmatch.errors import UserError
from trajmatch.ops import Shards
from trajmatch.random import generator


@dataclass(frozen=True)
class Plan:
    """Choices of memory against time, which change the result by rounding at most.

    Attributes:
        tape_bytes: Memory for activations that the engine keeps for the adjoint of a task.
        micro_batch: Images that go through the network at once; None: the whole student batch.
    """

    tape_bytes: int = 0
    micro_batch: int | None = None

    def __str__(self) -> str:
        limit = f"at most {self.tape_bytes / 2**20:.0f} MB of" if self.tape_bytes else "no"
        return f"{limit} activations kept{self.parts}"

    @property
    def parts(self) -> str:
        """Text for divided batches, empty where they are whole."""
        return f", {self.micro_batch} images at a time" if self.micro_batch else ""


class Draw(Protocol):
    """The random choices for one task of an outer iteration."""

    def logged(self) -> dict[str, Any]:
        """Return the choices that the log records, by name."""


class Draws(ABC):
    """The random state of a run, from which every task is drawn.

    Args:
        seed: Seed of the run.
        names: Names of the streams; each is drawn from for one purpose only.
    """

    def __init__(self, seed: int, *names: str) -> None:
        self.streams = {name: generator(seed, "distill", name) for name in names}

    @abstractmethod
    def draw(self, iteration: int, number: int, images: int) -> Draw:
        """Draw one task.

        Args:
            iteration: Outer iterations done.
            number: Number of the task in its outer iteration, from 0.
            images: Synthetic images in all.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state as tensors."""
        return {name: stream.get_state() for name, stream in self.streams.items()}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the state of :meth:`state_dict`."""
        for name, stream in self.streams.items():
            stream.set_state(tensors[name])


class Objective(ABC):
    """One objective of a run; immutable, and made from a :class:`trajmatch.distill.setup.Setup`.

    Attributes:
        records: True if tasks can be recorded as a CUDA graph (:meth:`inputs`); None if no two are
            of one shape, so that it would not pay.
        optimiser: Optimiser of the images where ``--optimiser-img`` does not name one; None: that
            of the parametrisation.
        clip: Clipping of their gradients where ``--clip-img`` does not say.
    """

    records: ClassVar[bool | None] = False
    optimiser: ClassVar[Literal["sgd", "adam"] | None] = None
    clip: ClassVar[float | None] = None

    @abstractmethod
    def draws(self) -> Draws:
        """Return the random state at the beginning of the run."""

    @abstractmethod
    def task(self, draw: Any) -> Any:
        """Read what a task needs of data and experts, onto the device."""

    @abstractmethod
    def differentiate(
        self, task: Any, parameters: Mapping[str, Tensor], plan: Plan
    ) -> tuple[Tensor, ...]:
        """Compute the loss of one task and its gradients, without waiting for a device.

        Args:
            task: From :meth:`task`.
            parameters: Outer parameters; those that are learned require a gradient.
            plan: Memory against time.

        Returns:
            The loss ``[]``, detached; whether it means anything ``[]``, bool; the gradient in
            each parameter that is learned, in their order; and the next value of each of
            :meth:`memory`, in theirs.
        """

    def memory(self) -> dict[str, Tensor]:
        """Return the first values of what tasks remember, under names that begin with ``memory.``.

        They are among the parameters of :meth:`differentiate`, and in checkpoints.
        """
        return {}

    def renewed(self, iteration: int, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return constants to put among the outer parameters before an iteration, by name.

        Args:
            iteration: Outer iterations done.
            parameters: Outer parameters.
        """
        return {}

    def batch_sizes(self, images: int) -> list[int]:
        """Return the number of images in each student step of a task; empty if it has none."""
        return []

    def vectors(self, steps: int) -> int:
        """Return the most parameter vectors that a task of some student steps keeps at a time."""
        return steps

    def trial(self, images: int, steps: int) -> tuple[Objective, Any]:
        """Return a task to measure time and memory by, and the objective to call with it.

        Args:
            images: Synthetic images in all.
            steps: Student steps of the task; 0 where a task has none.
        """
        return self, self.task(self.draws().draw(0, 0, images))

    def shared(self, shards: Shards) -> Objective:
        """Return the objective with student steps that processes share (``--parallel batch``)."""
        raise UserError("--parallel batch is for --objective match-trajectory alone")

    def inputs(self, task: Any) -> tuple[Hashable, list[Tensor]]:
        """Split a task into the part that a recording fixes and the tensors that it reads."""
        raise NotImplementedError

    def with_inputs(self, kind: Any, inputs: Sequence[Tensor]) -> Any:
        """Make a task of the two parts of :meth:`inputs`."""
        raise NotImplementedError


@dataclass(frozen=True)
class OuterGradient:
    """The loss of one task, or of one outer iteration, and its gradients.

    Attributes:
        loss: The loss.
        gradients: By name of the outer parameter, in its shape. Numbers are float64 on the CPU.
        meaningful: False if the loss means nothing: the expert did not move.
        memory: Next values of what tasks remember, by name.
    """

    loss: float
    gradients: Mapping[str, Tensor]
    meaningful: bool = True
    memory: Mapping[str, Tensor] = field(default_factory=dict)


def read(
    results: Sequence[Sequence[Tensor]], parameters: Mapping[str, Tensor]
) -> list[OuterGradient]:
    """Read what :meth:`Objective.differentiate` returned for several tasks.

    Every number is read at once, because reading waits for the device.
    """
    names = [name for name, value in parameters.items() if value.requires_grad]
    remembered = of_memory(parameters)
    numbers = torch.stack([each.double() for own in results for each in own if each.dim() == 0])
    rows = iter(numbers.cpu())
    gradients = []
    for own in results:
        loss, meaningful, *found = (next(rows) if each.dim() == 0 else each for each in own)
        by_name = dict(zip([*names, *remembered], found, strict=True))
        memory = {name: by_name.pop(name).to(parameters[name].dtype) for name in remembered}
        gradients.append(OuterGradient(float(loss), by_name, bool(meaningful), memory))
    return gradients


def mean_gradient(gradients: Sequence[OuterGradient]) -> OuterGradient:
    """Return loss and gradients of the mean of several tasks' losses; of one task, its own.

    Of what they remember it is the mean of floating-point tensors, and the largest of others.
    """
    count, (first, *others) = len(gradients), gradients
    return OuterGradient(
        loss=sum(gradient.loss for gradient in gradients) / count,
        gradients={
            name: sum((each.gradients[name] for each in others), start=value) / count
            for name, value in first.gradients.items()
        },
        meaningful=all(gradient.meaningful for gradient in gradients),
        memory={name: _joined([each.memory[name] for each in gradients]) for name in first.memory},
    )


def _joined(values: Sequence[Tensor]) -> Tensor:
    if len(values) == 1:
        return values[0]
    stacked = torch.stack([*values])
    return stacked.mean(0) if stacked.is_floating_point() else stacked.amax(0)
