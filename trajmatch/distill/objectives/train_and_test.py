"""Train and test: a student trained on the synthetic set is tested on real images.

A new student trains for ``K + W`` steps. Its loss on a batch of real images is differentiated
through the last ``W`` steps (the window); earlier steps are treated as constants (RaT-BPTT: Feng et
al., "Embarrassingly Simple Dataset Distillation", ICLR 2024).
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor

from trajmatch import networks, ops
from trajmatch.data.preprocessing import Normalise
from trajmatch.distill import objectives
from trajmatch.distill.objectives import OfStudents, Plan, student_batches
from trajmatch.distill.parameters import fresh_leaves
from trajmatch.distill.setup import Setup
from trajmatch.images.parametrisation import Tensors
from trajmatch.ops.arguments import DsaReplay
from trajmatch.random import derive_seed, generator

#: Real images per pass through the network; losses and gradients of passes are averaged.
_PART = 500


@dataclass(frozen=True)
class Draw:
    """Random choices for one student."""

    names: tuple[int, int]  # key of its random streams: iteration and number of the student
    before: int  # K, steps before the window
    batches: Sequence[Tensor]  # indices of synthetic images for each of the K + W steps
    rows: Tensor  # indices of the real images of the test: [R]
    final: bool = True  # False if the objective chooses the window later

    def logged(self) -> dict[str, Any]:
        """Return the choices to log, by name."""
        return {"window_start": self.before} if self.final else {}


class Draws(objectives.Draws):
    """Random state of a run: steps before the window, student batches and real batches."""

    def __init__(self, setup: Setup, window: int, choose: bool = False) -> None:
        super().__init__(setup.config.seed, "before", "batches", "rows")
        self._settings, self._real = setup.config, len(setup.training.train_images)
        self._window, self._choose = window, choose

    def draw(self, iteration: int, number: int, images: int) -> Draw:
        """Draw one student."""
        settings, (first, last) = self._settings, self._settings.before
        before = int(torch.randint(first, last + 1, (), generator=self.streams["before"]))
        # If the objective chooses the window later, the student needs the batches of K1 steps.
        before = last if self._choose else before
        count, stream = before + self._window, self.streams["batches"]
        batches = student_batches(images, settings.batch_syn, count, stream)
        rows = torch.randperm(self._real, generator=self.streams["rows"])[: settings.real_batch]
        return Draw((iteration, number), before, batches, rows, not self._choose)


@dataclass(frozen=True)
class Student:
    """Data of one task: a student, and the real images to test it on."""

    draw: Draw  # with indices on the device
    start: Tensor  # initial parameters: [P]
    dsa: tuple[DsaReplay | None, DsaReplay | None] = (None, None)  # before the window, and in it
    dsa_rows: Tensor | None = None  # DSA parameters of the real images


@dataclass(frozen=True, kw_only=True)
class TrainAndTest(OfStudents):
    """The train-and-test objective."""

    images: Tensor  # all real images, on the device
    labels: Tensor  # their labels, or targets
    normalise: Normalise  # maps a batch of real images to network inputs

    records = None  # the number of steps differs from one task to the next
    optimiser, clip, lr_lr = "adam", 2.0, 0.0

    @classmethod
    def of(cls, setup: Setup) -> "TrainAndTest":
        """Return the objective of a run."""
        training, device = setup.training, setup.device
        staged, normalise = training.preprocessing.staged(training.train_images.to(device))
        labels = training.train_answers.to(device)
        return cls(setup=setup, images=staged, labels=labels, normalise=normalise)

    def draws(self) -> Draws:
        """Return the random state at the start of the run."""
        return Draws(self.setup, self.setup.config.window)

    def task(self, draw: Draw) -> Student:
        """Draw the student's initial parameters and all augmentation."""
        setup, device = self.setup, self.setup.device
        # Streams named by iteration and student: a resumed run draws the same student.
        names = (setup.config.seed, "distill", "student", *draw.names)
        fresh = networks.initialise(copy.deepcopy(setup.model), generator(*names, "start"))
        # One copy for all batches, because each copy blocks the host.
        batches = torch.cat([*draw.batches]).to(device).split([*map(len, draw.batches)])
        there = replace(draw, batches=batches, rows=draw.rows.to(device))
        student = Student(there, networks.flat_parameters(fresh))
        if setup.dsa.spec == "none":
            return student
        streams = [derive_seed(*names, each) for each in ("before", "window", "test")]
        before, window, test = map(setup.dsa.replay, streams)
        rows = test.dsa_parameters(0, len(draw.rows), *self.images.shape[2:]).to(device)
        return replace(student, dsa=(before, window), dsa_rows=rows)

    def differentiate(self, task: Student, parameters: Tensors, plan: Plan) -> tuple[Tensor, ...]:
        """Train and test a student; differentiate the test loss through the window."""
        leaves = fresh_leaves(parameters)
        trained, (draw, state) = self.training(leaves, plan), (task.draw, None)
        batches, theta = draw.batches, task.start.to(trained.keywords["images"])
        # The steps before the window have no gradient, but pass on the optimiser's state.
        if draw.before:
            start = {"batches": batches[: draw.before], "augment": task.dsa[0]}
            with torch.no_grad():
                theta, state = trained(theta, **start, return_state=True)
        theta = trained(theta, batches=batches[draw.before :], augment=task.dsa[1], state=state)
        loss, cotangent = self.test(theta.detach(), task, plan)
        # Chain rule: pass the test loss's gradient with respect to theta back through the window.
        learned = [leaf for leaf in leaves.values() if leaf.requires_grad]
        # Unlike a matching loss, a test loss is never a division by 0.
        meaningful = torch.ones_like(loss, dtype=torch.bool)
        return loss, meaningful, *torch.autograd.grad(theta, learned, cotangent)

    def test(self, theta: Tensor, task: Student, plan: Plan) -> tuple[Tensor, Tensor]:
        """Return the mean loss ``[]`` of ``theta [P]`` on real images, and its gradient ``[P]``."""
        setup, drawn, loss = self.setup, task.draw.rows, self.setup.training.loss
        # Loss and gradient share a vector [1 + P], so that ranks exchange a single tensor.
        sums, count = theta.new_zeros(1 + len(theta)), len(drawn)
        part = min(_PART, plan.micro_batch or _PART)
        parts = torch.arange(count, device=theta.device).chunk(-(-count // part))
        rank, size = (self.shards.rank, self.shards.size) if self.shards else (0, 1)
        # Ranks take the parts in turn. A mean over the batch weights each part by its size.
        for some in parts[rank::size]:
            images = self.normalise(self.images[drawn[some]]).to(theta.dtype)
            if task.dsa_rows is not None:
                images = ops.dsa(images, task.dsa_rows[some])
            at = theta, images, self.labels[drawn[some]]
            found = ops.gradient(setup.model, *at, loss=loss, precise=setup.config.precise)
            sums += len(some) / count * torch.cat([found[0][None], found[1]])
        if self.shards is not None:
            self.shards.sum_(sums)
        return sums[0], sums[1:]

    def batch_sizes(self, images: int) -> list[int]:
        """Return the batch size of each step of the longest window."""
        draw = self.draws().draw(0, 0, images)
        return [*map(len, draw.batches[draw.before :])]

    def vectors(self, steps: int) -> int:
        """Return the number of vectors (parameters, optimiser state) that ``steps`` steps keep."""
        return steps * (3 if self.setup.config.student_optimiser == "adam" else 2)

    @property
    def steps_before(self) -> int:
        """Mean number of steps before a window."""
        return sum(self.setup.config.before) // 2

    def trial(self, images: int, steps: int) -> tuple["TrainAndTest", Student]:
        """Return a student with a window of ``steps`` steps, and proportionally many before it."""
        before = steps * self.steps_before // self.setup.config.window
        draw = self.draws().draw(0, 0, images)
        # The draw may have too few batches for these steps: repeat them.
        batches = [*islice(cycle(draw.batches), before + steps)]
        # The trial uses no shards. It does not choose a window, because `steps_before` includes the
        # steps for that.
        plain = TrainAndTest(
            setup=self.setup, images=self.images, labels=self.labels, normalise=self.normalise
        )
        return plain, plain.task(replace(draw, before=before, batches=batches))
