"""Interface of objectives, the goals that a synthetic set is learned for.

Add one with a line in ``distill/problem.py``, or name your own as ``package.module:NAME``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from trajmatch.distill.parameters import of_memory
from trajmatch.errors import UserError
from trajmatch.images.parametrisation import Tensors
from trajmatch.ops import Shards
from trajmatch.random import generator


@dataclass(frozen=True)
class Plan:
    """Trade-off of memory against time; it changes results by rounding at most."""

    tape_bytes: int = 0  # for activations that the engine keeps for the backward pass of a task
    micro_batch: int | None = None  # images per pass through the network; None: the whole batch

    def __str__(self) -> str:
        limit = f"at most {self.tape_bytes / 2**20:.0f} MB of" if self.tape_bytes else "no"
        return f"{limit} activations kept{self.parts}"

    @property
    def parts(self) -> str:
        """Text for micro-batches; empty for whole batches."""
        return f", {self.micro_batch} images at a time" if self.micro_batch else ""


class Draw(Protocol):
    """Random choices for one task of an outer iteration."""

    def logged(self) -> dict[str, Any]:
        """Return the choices to log, by name."""


class Draws(ABC):
    """Random state of a run: one stream per name, each used for one purpose only."""

    def __init__(self, seed: int, *names: str) -> None:
        self.streams = {name: generator(seed, "distill", name) for name in names}

    @abstractmethod
    def draw(self, iteration: int, number: int, images: int) -> Draw:
        """Draw one task; both numbers count from 0, ``images`` is the size of the synthetic set."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state as tensors."""
        return {name: stream.get_state() for name, stream in self.streams.items()}

    def load_state_dict(self, tensors: Tensors) -> None:
        """Restore the state that :meth:`state_dict` returned."""
        for name, stream in self.streams.items():
            stream.set_state(tensors[name])


class Objective(ABC):
    """One objective of a run; immutable, made from a :class:`trajmatch.distill.setup.Setup`.

    Attributes:
        records: True if tasks can be recorded as a CUDA graph (:meth:`inputs`); None if shapes
            differ from task to task, so that recording does not pay.
        optimiser: Optimiser of the images without ``--optimiser-img``; None: the parametrisation's.
        clip: Gradient clipping of the images without ``--clip-img``.
    """

    records: ClassVar[bool | None] = False
    optimiser: ClassVar[Literal["sgd", "adam"] | None] = None
    clip: ClassVar[float | None] = None

    @abstractmethod
    def draws(self) -> Draws:
        """Return the random state at the start of the run."""

    @abstractmethod
    def task(self, draw: Any) -> Any:
        """Load the data and expert parameters of a task onto the device."""

    @abstractmethod
    def differentiate(self, task: Any, parameters: Tensors, plan: Plan) -> tuple[Tensor, ...]:
        """Compute the loss of one task and its gradients, without waiting for the device.

        Returns:
            Detached loss ``[]``; bool ``[]``, False if the loss is meaningless; gradient of each of
            ``parameters`` that requires one, in order; next value of each tensor of :meth:`memory`,
            in order.
        """

    def memory(self) -> dict[str, Tensor]:
        """Return initial values of tensors kept from iteration to iteration, named ``memory.*``.

        They are among the parameters of :meth:`differentiate`. Checkpoints contain them.
        """
        return {}

    def renewed(self, iteration: int, parameters: Tensors) -> dict[str, Tensor]:
        """Return constants to set among the outer parameters before an iteration, by name."""
        return {}

    def batch_sizes(self, images: int) -> list[int]:
        """Return the batch size of each student step of a task; empty if it has none."""
        return []

    def vectors(self, steps: int) -> int:
        """Return the most parameter vectors that a task of ``steps`` steps keeps at one time."""
        return steps

    def trial(self, images: int, steps: int) -> tuple[Objective, Any]:
        """Return an objective and its task of ``steps`` steps (0 if tasks have none) to measure."""
        return self, self.task(self.draws().draw(0, 0, images))

    def shared(self, shards: Shards) -> Objective:
        """Return the objective for processes that share student steps (``--parallel batch``)."""
        raise UserError("--parallel batch is for objectives that train students; leave it out")

    def inputs(self, task: Any) -> tuple[Hashable, list[Tensor]]:
        """Split a task into the part that a recording fixes and the tensors that it reads."""
        raise NotImplementedError

    def with_inputs(self, kind: Any, inputs: Sequence[Tensor]) -> Any:
        """Rebuild a task from the two parts of :meth:`inputs`."""
        raise NotImplementedError


@dataclass(frozen=True)
class OuterGradient:
    """Loss of one task or one outer iteration, and its gradients."""

    loss: float
    gradients: Tensors  # by outer parameter, in its shape; scalars: float64 on the CPU
    meaningful: bool = True  # False if the expert did not move
    memory: Tensors = field(default_factory=dict)  # next values of remembered tensors


def read(results: Sequence[Sequence[Tensor]], parameters: Tensors) -> list[OuterGradient]:
    """Convert the results of :meth:`Objective.differentiate` for several tasks."""
    names = [name for name, value in parameters.items() if value.requires_grad]
    remembered = of_memory(parameters)
    # One copy to the host for all scalars, because each copy waits for the device.
    numbers = torch.stack([each.double() for own in results for each in own if each.dim() == 0])
    rows = iter(numbers.cpu())
    gradients = []
    for own in results:
        loss, meaningful, *found = (next(rows) if each.dim() == 0 else each for each in own)
        # Gradients of learned parameters come first, then the remembered tensors.
        by_name = dict(zip([*names, *remembered], found, strict=True))
        memory = {name: by_name.pop(name).to(parameters[name].dtype) for name in remembered}
        gradients.append(OuterGradient(float(loss), by_name, bool(meaningful), memory))
    return gradients


def mean_gradient(gradients: Sequence[OuterGradient]) -> OuterGradient:
    """Return the mean loss and gradients of several tasks, with their memory combined."""
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
    stacked = torch.stack([*values])  # bools and counts have no mean: take the maximum
    return stacked.mean(0) if stacked.is_floating_point() else stacked.amax(0)
