"""Train and test: a student of the synthetic set should do well on real images (RaT-BPTT).

A fresh student trains on the synthetic images for ``K + W`` steps. The loss is its cross-entropy on
a batch of real images, differentiated exactly through the last ``W`` steps, the window; the steps
before are taken as given (Feng et al., "Embarrassingly Simple Dataset Distillation", ICLR 2024).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from trajmatch import networks, ops
from trajmatch.distill import objectives
from trajmatch.distill.batches import student_batches
from trajmatch.distill.objectives import Plan
from trajmatch.distill.parameters import STEP_SIZE
from trajmatch.distill.rendering import render
from trajmatch.distill.setup import Setup
from trajmatch.ops import Shards
from trajmatch.ops.arguments import DsaReplay
from trajmatch.random import derive_seed, generator

#: Real images that go through the network at once; the loss of a batch is the mean over such parts.
_PART = 500


@dataclass(frozen=True)
class Draw:
    """The random choices for one student.

    Attributes:
        names: Iteration and number of the student, which name its own streams.
        before: Steps ``K`` before the window.
        batches: Indices into the synthetic images, one vector for each of the ``K + W`` steps.
        rows: Indices of the real images of the test. ``[R]``.
    """

    names: tuple[int, int]
    before: int
    batches: Sequence[Tensor]
    rows: Tensor

    def logged(self) -> dict[str, Any]:
        """Return the choices that the log records, by name."""
        return {"window_start": self.before}


class Draws(objectives.Draws):
    """The random state of a run: steps before the window, student batches and real batches."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup.config.seed, "before", "batches", "rows")
        self._settings, self._real = setup.config, len(setup.training.train_images)

    def draw(self, iteration: int, number: int, images: int) -> Draw:
        """Draw one student."""
        settings, (first, last) = self._settings, self._settings.before
        before = int(torch.randint(first, last + 1, (), generator=self.streams["before"]))
        steps = before + settings.window
        batches = student_batches(images, settings.batch_syn, steps, self.streams["batches"])
        rows = torch.randperm(self._real, generator=self.streams["rows"])[: settings.real_batch]
        return Draw((iteration, number), before, batches, rows)


@dataclass(frozen=True)
class Student:
    """A student, and the real images that it is tested on.

    Attributes:
        start: Its first parameters. ``[P]``.
        before: Batches of the steps before the window; may be empty.
        window: Batches of the steps that are differentiated.
        rows: Indices of the real images. ``[R]``.
        dsa: Augmentation before the window and in it; None: none.
        dsa_rows: Augmentation of the real images (:func:`trajmatch.ops.dsa`); None: none.
    """

    start: Tensor
    before: Sequence[Tensor]
    window: Sequence[Tensor]
    rows: Tensor
    dsa: tuple[DsaReplay | None, DsaReplay | None] = (None, None)
    dsa_rows: Tensor | None = None


@dataclass(frozen=True)
class TrainAndTest(objectives.Objective):
    """The objective; see :class:`trajmatch.distill.objectives.Objective`.

    Attributes:
        setup: Settings, network, real images and augmentation of the run.
        images: The real images as they wait for a batch, on the device.
        labels: Their classes. ``[N]``.
        normalise: Makes network inputs of some of them.
        shards: Processes that share every batch; None: no sharing.
    """

    setup: Setup
    images: Tensor
    labels: Tensor
    normalise: Callable[[Tensor], Tensor]
    shards: Shards | None = None

    records = None  # the number of steps differs from one task to the next
    optimiser, clip = "adam", 2.0

    @classmethod
    def of(cls, setup: Setup) -> TrainAndTest:
        """Return the objective of a run."""
        training, device = setup.training, setup.device
        images = training.train_images.to(device)
        staged = training.preprocessing.to(device).staged(images)
        return cls(setup, staged[0], training.train_labels.to(device), staged[1])

    def draws(self) -> Draws:
        """Return the random state at the beginning of the run."""
        return Draws(self.setup)

    def task(self, draw: Draw) -> Student:
        """Draw the student's first parameters and all augmentation."""
        setup, device = self.setup, self.setup.device
        names = (setup.config.seed, "distill", "student", *draw.names)
        fresh = networks.initialise(copy.deepcopy(setup.model), generator(*names, "start"))
        batches = torch.cat([*draw.batches]).to(device).split([*map(len, draw.batches)])
        parts = batches[: draw.before], batches[draw.before :]
        student = Student(networks.flat_parameters(fresh), *parts, draw.rows.to(device))
        if setup.dsa.spec == "none":
            return student
        streams = [derive_seed(*names, each) for each in ("before", "window", "test")]
        before, window, test = map(setup.dsa.replay, streams)
        rows = test.dsa_parameters(0, len(draw.rows), *self.images.shape[2:]).to(device)
        return replace(student, dsa=(before, window), dsa_rows=rows)

    def differentiate(
        self, task: Student, parameters: Mapping[str, Tensor], plan: Plan
    ) -> tuple[Tensor, ...]:
        """Train a student, test it, and differentiate the test through the window."""
        # A leaf of autograd belongs to one stream: each student has its own.
        leaves = {
            name: value.detach().requires_grad_(value.requires_grad)
            for name, value in parameters.items()
        }
        images, labels = render(self.setup.parametrisation, leaves, self.setup.shape)
        theta, settings, state = task.start.to(images.dtype), self.setup.config, None
        decay = settings.student_weight_decay
        optimiser: ops.SGD | ops.Adam = ops.Adam(weight_decay=decay)
        if settings.student_optimiser == "sgd":
            optimiser = ops.SGD(settings.student_momentum, weight_decay=decay)
        trained = partial(
            ops.unroll,
            self.setup.model,
            images=images,
            labels=labels,
            lr=leaves[STEP_SIZE].to(images.dtype),
            optimiser=optimiser,
            precise=settings.precise,
            exact=settings.gradient == "exact",
            tape_bytes=plan.tape_bytes,
            micro_batch=plan.micro_batch,
            shards=self.shards,
        )
        if task.before:
            with torch.no_grad():
                theta, state = trained(
                    theta, batches=task.before, augment=task.dsa[0], return_state=True
                )
        theta = trained(theta, batches=task.window, augment=task.dsa[1], state=state)
        loss, cotangent = self.test(theta.detach(), task, min(_PART, plan.micro_batch or _PART))
        learned = [leaf for leaf in leaves.values() if leaf.requires_grad]
        meaningful = torch.ones_like(loss, dtype=torch.bool)
        return loss, meaningful, *torch.autograd.grad(theta, learned, cotangent)

    def test(self, theta: Tensor, task: Student, part: int) -> tuple[Tensor, Tensor]:
        """Return a student's cross-entropy on its real images, and the gradient of it.

        Args:
            theta: The student's parameters. ``[P]``.
            task: Has the real images.
            part: Most images that go through the network at once.

        Returns:
            The mean over the images ``[]``, and its gradient in ``theta`` ``[P]``.
        """
        model, precise, count = self.setup.model, self.setup.config.precise, len(task.rows)
        sums = theta.new_zeros(1 + len(theta))  # the loss, and its gradient
        parts = torch.arange(count, device=theta.device).chunk(-(-count // part))
        rank, size = (self.shards.rank, self.shards.size) if self.shards else (0, 1)
        for some in parts[rank::size]:
            rows = task.rows[some]
            images = self.normalise(self.images[rows]).to(theta.dtype)
            if task.dsa_rows is not None:
                images = ops.dsa(images, task.dsa_rows[some])
            found = ops.gradient(model, theta, images, self.labels[rows], precise=precise)
            sums += len(some) / count * torch.cat([found[0][None], found[1]])
        if self.shards is not None:
            self.shards.sum_(sums)
        return sums[0], sums[1:]

    def batch_sizes(self, images: int) -> list[int]:
        """Return the number of images in each step of the window."""
        return [*map(len, self._trial_batches(images, self.setup.config.window))]

    def trial(self, images: int, steps: int) -> tuple[TrainAndTest, Student]:
        """Return a student with a shorter window and, in proportion, fewer steps before it."""
        settings = self.setup.config
        before = steps * sum(settings.before) // (2 * settings.window)
        rows = torch.arange(min(settings.real_batch, len(self.labels)))
        draw = Draw((0, 0), before, self._trial_batches(images, before + steps), rows)
        return replace(self, shards=None), self.task(draw)

    def _trial_batches(self, images: int, steps: int) -> list[Tensor]:
        settings = self.setup.config
        stream = generator(settings.seed, "distill", "plan")
        return student_batches(images, settings.batch_syn, steps, stream)

    def shared(self, shards: Shards) -> TrainAndTest:
        """Return the objective with student steps that processes share."""
        return replace(self, shards=shards)
