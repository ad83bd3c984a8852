"""Interface of objectives, the losses by which a synthetic set is learned.

``distill/problem.py`` lists the built-in ones; ``package.module:NAME`` is an objective of the user.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Literal, Protocol, Self

import torch
from torch import Tensor

from trajmatch import ops
from trajmatch.distill.parameters import STEP_SIZE, of_memory
from trajmatch.distill.setup import Setup
from trajmatch.errors import UserError
from trajmatch.images.parametrisation import Tensors
from trajmatch.random import generator


@dataclass(frozen=True)
class Plan:
    """Trade-off between memory and time; it changes results by rounding at most."""

    tape_bytes: int = 0  # limit for activations that the engine keeps in each task
    micro_batch: int | None = None  # images per pass through the network; None: the whole batch
    tasks: int = 1  # tasks that a CUDA graph runs side by side

    def __str__(self) -> str:
        # The total of all tasks, as in --tape-mb.
        total = f"at most {self.tasks * self.tape_bytes / 2**20:.0f} MB of"
        return f"keeping {total if self.tape_bytes else 'no'} activations{self.parts}"

    @property
    def parts(self) -> str:
        """Text about micro-batches and tasks side by side; empty without them."""
        images = f", {self.micro_batch} images at a time" if self.micro_batch else ""
        return images + (f", {self.tasks} matches side by side" if self.tasks > 1 else "")


#: Results of one task (:meth:`Objective.differentiate`), on the device.
Results = Sequence[Tensor]


class Draw(Protocol):
    """Random choices for one task of an outer iteration."""

    def logged(self) -> dict[str, Any]:
        """Return the choices to log, by name."""


class Draws(ABC):
    """Random state of a run: one stream per name, each used for one purpose only."""

    def __init__(self, seed: int, *names: str) -> None:
        # Separate streams, so that more draws for one purpose do not change the others.
        self.streams = {name: generator(seed, "distill", name) for name in names}

    @abstractmethod
    def draw(self, iteration: int, number: int, images: int) -> Draw:
        """Draw the random choices for task ``number`` of an iteration; both count from 0.

        ``images`` is the number of synthetic images.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state as new tensors."""
        return {name: stream.get_state() for name, stream in self.streams.items()}

    def load_state_dict(self, tensors: Tensors) -> None:
        """Restore the state that :meth:`state_dict` returned."""
        for name, stream in self.streams.items():
            stream.set_state(tensors[name])


class Objective(ABC):
    """One objective of a run; immutable, made from a :class:`trajmatch.distill.setup.Setup`.

    Attributes:
        records: True if tasks can be recorded as a CUDA graph. Tasks then consist of tensors and
            hashable constants in (named) tuples, lists and dicts, and :meth:`differentiate` depends
            on nothing else. None if their shapes vary, so that recording would not pay.
        optimiser: Default for ``--optimiser-img``; None: the default of the parametrisation.
        clip: Default for ``--clip-img``.
        lr_lr: Default for ``--lr-lr``.
    """

    records: ClassVar[bool | None] = False
    optimiser: ClassVar[Literal["sgd", "adam"] | None] = None
    clip: ClassVar[float | None] = None
    lr_lr: ClassVar[float] = 1e-5

    @abstractmethod
    def draws(self) -> Draws:
        """Return the random state at the start of the run."""

    @abstractmethod
    def task(self, draw: Any) -> Any:
        """Load the data and expert parameters of a task.

        The loop calls this one iteration ahead, while the device may still work on earlier tasks.
        So it must not change memory that they use, nor depend on :meth:`renewed`. Return tensors
        from ``Setup.pinned`` and copy them in :meth:`differentiate`: a copy made here would wait
        for the device.
        """

    @abstractmethod
    def differentiate(self, task: Any, parameters: Tensors, plan: Plan) -> tuple[Tensor, ...]:
        """Compute the loss of one task and its gradients, without waiting for the device.

        Returns:
            The detached loss ``[]``, a bool ``[]`` that is False if the loss is meaningless, the
            gradient of each parameter that requires one, and the next value of each tensor of
            :meth:`memory`, in this order.
        """

    def differentiate_together(
        self, tasks: Sequence[Any], parameters: Tensors, plan: Plan
    ) -> list[tuple[Tensor, ...]]:
        """Return :meth:`differentiate` of several tasks; they may share launches on a GPU."""
        return [self.differentiate(task, parameters, plan) for task in tasks]

    def memory(self) -> dict[str, Tensor]:
        """Return initial values of the tensors ``memory.*``, kept from iteration to iteration.

        Checkpoints contain these tensors, and :meth:`differentiate` gets them as parameters.
        """
        return {}

    def renewed(self, iteration: int, parameters: Tensors) -> dict[str, Tensor]:
        """Return constants to put among the outer parameters before an iteration, by name."""
        return {}

    def batch_sizes(self, images: int) -> list[int]:
        """Return the batch size of each student step of a task; empty without student steps."""
        return []

    def vectors(self, steps: int) -> int:
        """Return the largest number of parameter vectors that ``steps`` steps keep in memory."""
        return steps

    def trial(self, images: int, steps: int) -> tuple["Objective", Any]:
        """Return an objective and a task of ``steps`` student steps, to measure memory and time."""
        return self, self.task(self.draws().draw(0, 0, images))

    def shared(self, shards: ops.Shards) -> "Objective":
        """Return a copy that divides student batches among processes (``--parallel batch``)."""
        raise UserError("--parallel batch is for objectives that train students; leave it out")


@dataclass(frozen=True, kw_only=True)
class OfStudents(Objective):
    """Objective whose tasks train students, each batch divided among ``shards``."""

    setup: Setup
    shards: ops.Shards | None = None

    def training(self, parameters: Tensors, plan: Plan) -> partial[Any]:
        """Bind :func:`trajmatch.ops.unroll` to the synthetic set and the settings of the run."""
        setup, settings = self.setup, self.setup.config
        images, labels = setup.synthetic_set(parameters)
        decay = settings.student_weight_decay
        optimiser: ops.SGD | ops.Adam = ops.Adam(weight_decay=decay)
        if settings.student_optimiser == "sgd":
            optimiser = ops.SGD(settings.student_momentum, weight_decay=decay)
        return partial(
            ops.unroll,
            setup.model,
            images=images,
            labels=labels,
            lr=parameters[STEP_SIZE].to(images.dtype),
            loss=setup.training.loss,
            optimiser=optimiser,
            precise=settings.precise,
            exact=settings.gradient == "exact",
            tape_bytes=plan.tape_bytes,
            micro_batch=plan.micro_batch,
            shards=self.shards,
        )

    def shared(self, shards: ops.Shards) -> Self:
        """Return a copy that divides every batch among processes."""
        return replace(self, shards=shards)


def student_batches(
    count: int, batch_size: int | None, steps: int, generator: torch.Generator
) -> list[Tensor]:
    """Draw ``steps`` index vectors ``[B]`` (int64) by cutting up permutations of the images.

    If the batch size does not divide ``count``, the first batch of each permutation is short, as
    in the code of MTT, FTD, AST and DATM. A size of None or above ``count`` means all images.
    """
    size = min(batch_size or count, count)
    whole, short = divmod(count, size)
    sizes = [short] * (short > 0) + [size] * whole
    batches: list[Tensor] = []
    # Steps may take several permutations; leftover batches of the last are dropped.
    while len(batches) < steps:
        batches.extend(torch.randperm(count, generator=generator).split(sizes))
    return batches[:steps]


@dataclass(frozen=True)
class OuterGradient:
    """Loss and gradients of one task, or their means over the tasks of an iteration."""

    loss: float
    gradients: Tensors  # by outer parameter; scalars are float64 on the CPU
    meaningful: bool = True  # False if the expert did not move
    memory: Tensors = field(default_factory=dict)  # next values of the memory tensors


def read(results: Sequence[Results], parameters: Tensors) -> list[OuterGradient]:
    """Wait for the device and convert results, one per task, to OuterGradients."""
    names = [name for name, value in parameters.items() if value.requires_grad]
    remembered = of_memory(parameters)
    # One copy to the host for all scalars, because each copy waits for the device.
    device = results[0][0].device
    scalars = [each for own in results for each in own if each.dim() == 0]
    numbers = torch.stack([each.to(device, torch.float64) for each in scalars])
    rows = iter(numbers.cpu())
    gradients = []
    for own in results:
        # Take scalars from the host copy; other tensors stay on the device.
        loss, meaningful, *found = (next(rows) if each.dim() == 0 else each for each in own)
        # The order of differentiate: gradients of learned parameters, then memory tensors.
        by_name = dict(zip([*names, *remembered], found, strict=True))
        memory = {name: by_name.pop(name).to(parameters[name].dtype) for name in remembered}
        gradients.append(OuterGradient(float(loss), by_name, bool(meaningful), memory))
    return gradients


def mean_gradient(gradients: Sequence[OuterGradient]) -> OuterGradient:
    """Return the mean loss and gradients of several tasks, and their combined memory."""
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
    # Bools and counts have no mean: take the maximum.
    return stacked.mean(0) if stacked.is_floating_point() else stacked.amax(0)
