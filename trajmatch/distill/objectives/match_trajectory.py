"""Trajectory matching: a student should end where an expert did (MTT, FTD, AST, DATM).

A student trains for ``N`` steps from an expert's parameters. The loss is the distance to the
expert's parameters ``M`` epochs later (MTT, Cazenavette et al., CVPR 2022), or a sum of terms.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from trajmatch import networks, ops
from trajmatch.distill import objectives
from trajmatch.distill.config import DistillConfig
from trajmatch.distill.objectives import OfStudents, Plan, student_batches
from trajmatch.distill.objectives.gradient_mask import GradientMask
from trajmatch.distill.objectives.matching import MatchingLoss
from trajmatch.distill.objectives.start import StartEpochWindow, balance, perturbed
from trajmatch.distill.parameters import MASK, fresh_leaves, of_memory
from trajmatch.distill.setup import Setup
from trajmatch.distill.terms import Course, find_term
from trajmatch.images.parametrisation import Tensors
from trajmatch.ops.arguments import DsaReplay
from trajmatch.random import derive_seed, generator


@dataclass(frozen=True)
class Draw:
    """Random choices for one match."""

    names: tuple[int, ...]  # key of its random streams: iteration, and match number if not 0
    expert: int
    start_epoch: int  # s, the expert's epoch at which the student starts
    batches: Sequence[Tensor]  # indices of images, [B] for each student step

    def logged(self) -> dict[str, Any]:
        """Return the choices to log, by name."""
        return {"start_epoch": self.start_epoch, "expert": self.expert}


class Draws(objectives.Draws):
    """Random state of a run; experts are shuffled, and shuffled again once all are used."""

    def __init__(self, settings: DistillConfig, num_experts: int, window: StartEpochWindow) -> None:
        super().__init__(settings.seed, "experts", "start_epochs", "batches")
        self._left = torch.empty(0, dtype=torch.int64)  # unused experts of this permutation
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

    def load_state_dict(self, tensors: Tensors) -> None:
        """Restore the state that :meth:`state_dict` returned."""
        super().load_state_dict(tensors)
        self._left = tensors["experts_left"]


class Match(NamedTuple):
    """Data of one match, on the host or the device."""

    start: Tensor  # initial parameters [P]: the expert's, perturbed if --perturb is set
    expert: Mapping[int, Tensor]  # parameters [P] by epoch after the start epoch, up to M
    sizes: tuple[int, ...]  # batch size of each student step
    indices: Tensor  # indices of images, the batches of all student steps joined
    dsa_rows: Tensor | None  # DSA parameters of these images: [len(indices), 5]
    loss_scale: Tensor  # kappa: []
    iteration: Tensor  # outer iterations done: [], int64

    @property
    def batches(self) -> tuple[Tensor, ...]:
        """Indices of images, ``[B]`` for each student step."""
        return self.indices.split(self.sizes)

    @property
    def augment(self) -> DsaReplay | None:
        """Augmentation of the student steps."""
        return None if self.dsa_rows is None else _DrawnDsa(self.dsa_rows.split(self.sizes))


@dataclass(frozen=True, kw_only=True)
class MatchTrajectory(OfStudents):
    """Trajectory-matching objective, with an optional mask for the gradient of the images."""

    window: StartEpochWindow
    loss: MatchingLoss
    mask: GradientMask | None = None

    records = True

    @classmethod
    def of(cls, setup: Setup) -> "MatchTrajectory":
        """Return the objective of a run; UserError if a term fails or the store lacks epochs."""
        config, store = setup.config, setup.store
        window, loss = segments_of(config, store.manifest["snapshots"])
        flags = f"--max-start-epoch {window.maximum} with --expert-epochs {config.expert_epochs}"
        # The latest start epoch is maximum - 1.
        store.check_trained(window.maximum - 1 + config.expert_epochs, flags)
        loss.check(config.student_steps, networks.parameter_shapes(setup.model), setup.device)
        return cls(setup=setup, window=window, loss=loss, mask=GradientMask.of(setup))

    def draws(self) -> Draws:
        """Return the random state at the start of the run."""
        return Draws(self.setup.config, self.setup.store.num_experts, self.window)

    def task(self, draw: Draw) -> Match:
        """Load a match on the host: start, expert snapshots that the loss compares, DSA."""
        setup, store, settings = self.setup, self.setup.store, self.setup.config
        start = store.snapshot(draw.expert, draw.start_epoch)
        if settings.perturb:
            noise = generator(settings.seed, "distill", "perturbation", *draw.names)
            start = perturbed(setup.model, start, settings.perturb, noise)
        sizes, rows, pinned = tuple(map(len, draw.batches)), None, setup.pinned
        if setup.dsa.spec != "none":
            augment = setup.dsa.replay(derive_seed(settings.seed, "distill", "dsa", *draw.names))
            drawn = [augment.dsa_parameters(i, n, *setup.shape[1:]) for i, n in enumerate(sizes)]
            rows = pinned(torch.cat(drawn))
        kappa = balance(draw.start_epoch, self.window.maximum) if settings.balance else 1.0
        return Match(
            start=pinned(start),
            expert={
                epoch: pinned(store.snapshot(draw.expert, draw.start_epoch + epoch))
                for epoch in self.loss.expert_epochs(len(sizes))
            },
            sizes=sizes,
            indices=pinned(torch.cat([*draw.batches])),
            dsa_rows=rows,
            # A recording would repeat numbers, but reads tensors anew.
            loss_scale=torch.tensor(kappa, dtype=start.dtype),
            iteration=torch.tensor(draw.names[0]),
        )

    def differentiate(self, task: Match, parameters: Tensors, plan: Plan) -> tuple[Tensor, ...]:
        """Train a student and differentiate its matching loss."""
        (results,) = self.differentiate_together([task], parameters, plan)
        return results

    def differentiate_together(
        self, tasks: Sequence[Match], parameters: Tensors, plan: Plan
    ) -> list[tuple[Tensor, ...]]:
        """Train the students of several matches side by side, and differentiate their losses."""
        tasks = [self._on_device(task) for task in tasks]
        # Every match has leaves of its own, and so gradients of its own.
        leaves = [fresh_leaves(parameters) for _ in tasks]
        calls = [self._call(*each, plan) for each in zip(tasks, leaves, strict=True)]
        trained = ops.unroll_together(self.setup.model, calls)
        courses = [self._course(*each) for each in zip(tasks, leaves, trained, strict=True)]
        values = [self.loss(course) for course in courses]
        learned = [leaf for own in leaves for leaf in own.values() if leaf.requires_grad]
        gradients = torch.autograd.grad(values, learned)
        count, results = len(learned) // len(tasks), []
        for number, (task, course) in enumerate(zip(tasks, courses, strict=True)):
            # The loss of a memory trial lacks the run's terms, so their memory stays as it is.
            following = {**course.memory, **self.loss.remember(course)}
            memory = [following[name].clone() for name in course.memory]
            # If the expert did not move, the loss is a division by 0 and meaningless.
            moves = (task.start != task.expert[self.loss.epochs]).any()
            own = gradients[number * count : (number + 1) * count]
            results.append((values[number].detach(), moves, *own, *memory))
        return results

    def _call(self, task: Match, leaves: Tensors, plan: Plan) -> dict[str, Any]:
        """Return the arguments of :func:`trajmatch.ops.unroll` for the student of a match."""
        settings = self.training(leaves, plan).keywords
        # The mask scales the gradient of the rendered images, not of their parameters.
        if MASK in leaves and settings["images"].requires_grad:
            settings["images"].register_hook(leaves[MASK].mul)
        # In SGD, scaling the loss of every step is the same as scaling the step size.
        lr = settings["lr"] * task.loss_scale
        steps = self.loss.student_steps(len(task.sizes))
        own = {"theta0": task.start, "batches": task.batches, "augment": task.augment}
        return {**settings, **own, "lr": lr, "steps": steps}

    def _course(self, task: Match, leaves: Tensors, thetas: Tensor) -> Course:
        """Return what the loss compares; ``thetas [W, P]`` is the student at the waypoints."""
        steps = len(task.sizes)
        return Course(
            start=task.start,
            student=dict(zip(self.loss.student_steps(steps), thetas.unbind(), strict=True)),
            expert=task.expert,
            steps=steps,
            epochs=self.loss.epochs,
            shapes=networks.parameter_shapes(self.setup.model),
            iteration=task.iteration,
            memory={name: leaves[name] for name in of_memory(leaves)},
        )

    def renewed(self, iteration: int, parameters: Tensors) -> dict[str, Tensor]:
        """Return a new gradient mask every ``mask_every`` iterations, and nothing in between."""
        if self.mask is None or iteration % self.setup.config.mask_every:
            return {}
        with torch.no_grad():
            shown = self.setup.synthetic_set(parameters)
        return {MASK: self.mask(*shown)}

    def memory(self) -> dict[str, Tensor]:
        """Return initial values of the terms' memory tensors."""
        return self.loss.memory(networks.parameter_shapes(self.setup.model))

    def _on_device(self, task: Match) -> Match:
        device, pinned = self.setup.device, self.setup.pinned
        if task.start.device.type == device.type:
            return task
        return tree_map_only(Tensor, lambda each: pinned(each).to(device, non_blocking=True), task)

    def batch_sizes(self, images: int) -> list[int]:
        """Return the batch size of each student step of a match."""
        return [*map(len, self.draws().draw(0, 0, images).batches)]

    def vectors(self, steps: int) -> int:
        """Count one vector per step, plus three for each step that the loss compares."""
        # The three are the parameters, their gradient, and a copy of one of the two.
        return steps + 3 * len(self.loss.student_steps(steps))

    def trial(self, images: int, steps: int) -> tuple["MatchTrajectory", Match]:
        """Return a match of ``steps`` student steps to measure."""
        # The run's terms may need more steps than the trial has, so compare only the end.
        objective = replace(self, loss=MatchingLoss(epochs=self.loss.epochs), shards=None)
        draw = self.draws().draw(0, 0, images)
        return objective, objective.task(replace(draw, batches=draw.batches[:steps]))


def segments_of(
    config: DistillConfig, snapshots_kept: Collection[int]
) -> tuple[StartEpochWindow, MatchingLoss]:
    """Return start epochs and loss; UserError if they need an epoch that the store lacks."""
    ends = (config.window_end(snapshots_kept), config.first_max_start_epoch)
    window = StartEpochWindow(config.min_start_epoch, *ends, config.growth_iterations)
    terms = tuple(map(find_term, config.terms))
    loss = MatchingLoss(terms, config.expert_epochs, tuple(config.terms))
    window.check(snapshots_kept, loss.expert_epochs(config.student_steps))
    return window, loss


class _DrawnDsa:
    """DSA with parameters that are drawn already, ``[B, 5]`` per student step."""

    def __init__(self, rows: Sequence[Tensor]) -> None:
        self._rows = rows

    def __call__(self, images: Tensor, step: int) -> Tensor:
        return ops.dsa(images, self._rows[step])

    def dsa_parameters(self, step: int, count: int, height: int, width: int) -> Tensor:
        return self._rows[step]
