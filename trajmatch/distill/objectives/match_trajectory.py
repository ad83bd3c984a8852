"""Trajectory matching: the student should end where the expert went (MTT, FTD, AST, DATM).

A student starts from an expert's parameters after some epoch and trains on the synthetic images for
``N`` steps. The loss is how far it is then from the expert ``M`` epochs later (MTT, Cazenavette et
al., CVPR 2022), or a sum of such terms. The gradient is exact through all student steps.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from trajmatch import networks, ops
from trajmatch.distill import objectives
from trajmatch.distill.config import DistillConfig
from trajmatch.distill.objectives import Plan
from trajmatch.distill.objectives.balance import balance
from trajmatch.distill.objectives.gradient_mask import GradientMask
from trajmatch.distill.objectives.matching import MatchingLoss
from trajmatch.distill.objectives.of_students import OfStudents, moved, student_batches
from trajmatch.distill.objectives.perturbation import perturbed
from trajmatch.distill.objectives.schedule import StartEpochWindow
from trajmatch.distill.parameters import MASK, fresh_leaves, of_memory
from trajmatch.distill.setup import Setup
from trajmatch.distill.terms import Course, find_term
from trajmatch.ops.arguments import DsaReplay
from trajmatch.random import derive_seed, generator


@dataclass(frozen=True)
class Draw:
    """The random choices for one match.

    Attributes:
        names: Names of the match's own streams: outer iterations done and, but for the first match
            of an iteration, the number of the match.
        expert: Number of the expert.
        start_epoch: Epoch ``s`` where the student starts.
        batches: Indices into the synthetic images, one vector ``[B]`` for each student step.
    """

    names: tuple[int, ...]
    expert: int
    start_epoch: int
    batches: Sequence[Tensor]

    def logged(self) -> dict[str, Any]:
        """Return the choices that the log records, by name."""
        return {"start_epoch": self.start_epoch, "expert": self.expert}


class Draws(objectives.Draws):
    """The random state of a run.

    Experts come one after another in shuffled order, shuffled anew when all have been used.

    Args:
        settings: Those of the run.
        num_experts: Experts in the store.
        window: Start epochs.
    """

    def __init__(self, settings: DistillConfig, num_experts: int, window: StartEpochWindow) -> None:
        super().__init__(settings.seed, "experts", "start_epochs", "batches")
        self._left = torch.empty(0, dtype=torch.int64)  # experts of the current permutation
        self._settings, self._num_experts, self._window = settings, num_experts, window

    def draw(self, iteration: int, number: int, images: int) -> Draw:
        """Draw one match."""
        if len(self._left) == 0:
            self._left = torch.randperm(self._num_experts, generator=self.streams["experts"])
        expert, self._left = int(self._left[0]), self._left[1:]
        start_epoch = self._window.draw(iteration, self.streams["start_epochs"])
        settings, stream = self._settings, self.streams["batches"]
        batches = student_batches(images, settings.batch_syn, settings.student_steps, stream)
        names = (iteration, number) if number else (iteration,)
        return Draw(names, expert, start_epoch, batches)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state as tensors."""
        return {**super().state_dict(), "experts_left": self._left.clone()}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the state of :meth:`state_dict`."""
        super().load_state_dict(tensors)
        self._left = tensors["experts_left"]


@dataclass(frozen=True)
class Match:
    """The path that one student trains along.

    Attributes:
        start: Parameters that the student starts from: the expert's at the start epoch, perturbed
            where the run perturbs them. ``[P]``.
        expert: The expert's parameters at the epochs after the start that the loss looks at; the
            last is ``M``. ``[P]`` each.
        batches: Indices into the synthetic images, one vector ``[B]`` for each student step.
        augment: DSA of the batches; None: none.
        loss_scale: ``kappa``, the factor of the student's loss; a number or ``[]``.
        iteration: Outer iterations done; a number or ``[]``, int64.
    """

    start: Tensor
    expert: Mapping[int, Tensor]
    batches: Sequence[Tensor]
    augment: DsaReplay | None = None
    loss_scale: float | Tensor = 1.0
    iteration: int | Tensor = 0


@dataclass(frozen=True, kw_only=True)
class MatchTrajectory(OfStudents):
    """The objective; see :class:`trajmatch.distill.objectives.Objective`.

    Attributes:
        window: Start epochs.
        loss: The matching loss.
        mask: Mask of the images' gradient; None: none.
    """

    window: StartEpochWindow
    loss: MatchingLoss
    mask: GradientMask | None = None

    records = True

    @classmethod
    def of(cls, setup: Setup) -> MatchTrajectory:
        """Return the objective of a run.

        Raises:
            UserError: A segment needs an epoch that the experts lack, or a term is none or fails,
                or the experts cannot make the mask of the images' gradient.
        """
        config, store = setup.config, setup.store
        window, loss = segments_of(config, store.manifest["snapshots"])
        flags = f"--max-start-epoch {window.maximum} with --expert-epochs {config.expert_epochs}"
        store.check_trained(window.maximum - 1 + config.expert_epochs, flags)
        loss.check(config.student_steps, networks.parameter_shapes(setup.model), setup.device)
        return cls(setup=setup, window=window, loss=loss, mask=GradientMask.of(setup))

    def draws(self) -> Draws:
        """Return the random state at the beginning of the run."""
        return Draws(self.setup.config, self.setup.store.num_experts, self.window)

    def task(self, draw: Draw) -> Match:
        """Read the snapshots that the loss looks at, and no others."""
        setup, store, settings = self.setup, self.setup.store, self.setup.config
        start = store.snapshot(draw.expert, draw.start_epoch)
        if settings.perturb:
            noise = generator(settings.seed, "distill", "perturbation", *draw.names)
            start = perturbed(setup.model, start, settings.perturb, noise)
        augment = None
        if setup.dsa.spec != "none":
            augment = setup.dsa.replay(derive_seed(settings.seed, "distill", "dsa", *draw.names))
        return Match(
            start=start.to(setup.device),
            expert={
                epoch: store.snapshot(draw.expert, draw.start_epoch + epoch).to(setup.device)
                for epoch in self.loss.expert_epochs(len(draw.batches))
            },
            batches=moved(draw.batches, setup.device),
            augment=augment,
            loss_scale=balance(draw.start_epoch, self.window.maximum) if settings.balance else 1.0,
            iteration=torch.full((), draw.names[0], device=setup.device),
        )

    def differentiate(
        self, task: Match, parameters: Mapping[str, Tensor], plan: Plan
    ) -> tuple[Tensor, ...]:
        """Train a student along a match, and differentiate the matching loss."""
        leaves = fresh_leaves(parameters)
        trained = self.training(leaves, plan)
        images = trained.keywords["images"]
        if MASK in leaves and images.requires_grad:
            images.register_hook(leaves[MASK].mul)
        steps = len(task.batches)
        counts = self.loss.student_steps(steps)
        # A factor of the loss in every step is one of the step size.
        lr = trained.keywords["lr"] * task.loss_scale
        thetas = trained(
            task.start, lr=lr, batches=task.batches, steps=counts, augment=task.augment
        )
        course = Course(
            start=task.start,
            student=dict(zip(counts, thetas.unbind(), strict=True)),
            expert=task.expert,
            steps=steps,
            epochs=self.loss.epochs,
            shapes=networks.parameter_shapes(self.setup.model),
            iteration=task.iteration,
            memory={name: leaves[name] for name in of_memory(leaves)},
        )
        value = self.loss(course)
        following = {**course.memory, **self.loss.remember(course)}
        memory = [following[name].clone() for name in course.memory]
        moves = (task.start != task.expert[self.loss.epochs]).any()
        learned = [leaf for leaf in leaves.values() if leaf.requires_grad]
        return value.detach(), moves, *torch.autograd.grad(value, learned), *memory

    def renewed(self, iteration: int, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the mask of the images' gradient, every now and then."""
        if self.mask is None or iteration % self.setup.config.mask_every:
            return {}
        with torch.no_grad():
            shown = self.setup.synthetic_set(parameters)
        return {MASK: self.mask(*shown)}

    def memory(self) -> dict[str, Tensor]:
        """Return the first values of what the terms remember."""
        return self.loss.memory(networks.parameter_shapes(self.setup.model))

    def inputs(self, task: Match) -> tuple[Any, list[Tensor]]:
        """Split a match into what a recording fixes and the tensors that it reads."""
        sizes = tuple(map(len, task.batches))
        tensors = [task.start, *task.expert.values(), torch.cat([*task.batches])]
        tensors.append(torch.as_tensor(task.loss_scale, dtype=task.start.dtype))
        tensors.append(torch.as_tensor(task.iteration))
        if task.augment is not None:
            place = self.setup.shape[1:]
            rows = [
                task.augment.dsa_parameters(step, count, *place) for step, count in enumerate(sizes)
            ]
            tensors.append(torch.cat(rows))
        return (sizes, tuple(task.expert), task.augment is not None), tensors

    def with_inputs(self, kind: Any, inputs: Sequence[Tensor]) -> Match:
        """Make a match whose numbers lie in the memory that a recording reads."""
        sizes, epochs, augments = kind
        start, *vectors = inputs[: 1 + len(epochs)]
        indices, scale, iteration, *rows = inputs[1 + len(epochs) :]
        expert = dict(zip(epochs, vectors, strict=True))
        augment = _BufferedDsa(rows[0].split(sizes)) if augments else None
        return Match(start, expert, indices.split(sizes), augment, scale, iteration)

    def batch_sizes(self, images: int) -> list[int]:
        """Return the number of images in each student step of a match."""
        return [*map(len, self.draws().draw(0, 0, images).batches)]

    def vectors(self, steps: int) -> int:
        """Return the vectors of the steps, and three of each that the loss looks at.

        These are the parameters, their gradient, and a copy of one or the other.
        """
        return steps + 3 * len(self.loss.student_steps(steps))

    def trial(self, images: int, steps: int) -> tuple[MatchTrajectory, Match]:
        """Return a match of some steps to measure by.

        Its loss looks at the end alone, so that it may have fewer steps than the run.
        """
        objective = replace(self, loss=MatchingLoss(epochs=self.loss.epochs), shards=None)
        draw = self.draws().draw(0, 0, images)
        return objective, objective.task(replace(draw, batches=draw.batches[:steps]))


def segments_of(
    config: DistillConfig, snapshots_kept: Collection[int]
) -> tuple[StartEpochWindow, MatchingLoss]:
    """Return the start epochs of a run and its matching loss.

    Args:
        config: What is asked for.
        snapshots_kept: Epochs of which there are the experts' parameters, or will be.

    Raises:
        UserError: A segment would need another epoch, or there is no such term.
    """
    window = StartEpochWindow(
        config.min_start_epoch,
        config.window_end(snapshots_kept),
        config.first_max_start_epoch,
        config.growth_iterations,
    )
    terms = tuple(map(find_term, config.terms))
    loss = MatchingLoss(terms, config.expert_epochs, tuple(config.terms))
    window.check(snapshots_kept, loss.expert_epochs(config.student_steps))
    return window, loss


class _BufferedDsa:
    """DSA whose parameters lie in memory that a recording reads, ``[B, 5]`` for each step."""

    def __init__(self, rows: Sequence[Tensor]) -> None:
        self._rows = rows

    def __call__(self, images: Tensor, step: int) -> Tensor:
        return ops.dsa(images, self._rows[step])

    def dsa_parameters(self, step: int, count: int, height: int, width: int) -> Tensor:
        return self._rows[step]
