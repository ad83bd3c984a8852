"""Train-and-test windows that the student's gradients choose (AT-BPTT, NeurIPS 2025).

Let ``g_t`` be the student's gradient in step ``t``, ``W`` the usual length of a window, and ``d``
and ``tau`` the rule's ``spread`` and ``temperature``. The first step of the window is drawn from
``softmax(-|g_t| / tau)`` while the loss is high, from ``softmax(|g_t| / tau)`` once the loss is
low, and uniformly in between. A window that starts at step ``t`` has ``W - d + 2 d e_t`` steps,
where ``e_t = c_t / max c`` and ``c_t = abs(|g_t| - |g_{t-1}|)``. The loss is the test loss after
``K1`` student steps (``--steps-before K0:K1``). The paper leaves ``e_t`` and this loss open.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trajmatch import ops
from trajmatch.distill.objectives import Plan
from trajmatch.distill.objectives.train_and_test import Draws, Student, TrainAndTest
from trajmatch.distill.setup import Setup
from trajmatch.errors import UserError
from trajmatch.images.parametrisation import Tensors
from trajmatch.importing import expect_kind, made
from trajmatch.random import generator
from trajmatch.schema import Count, Finite, Positive, settle


@dataclass(frozen=True)
class GradientWindows:
    """Rule that chooses windows by the student's gradients."""

    high: Finite  # test loss above which windows start where gradients are small
    low: Finite  # test loss below which they start where gradients are large
    temperature: Positive = 1.0  # tau
    spread: Count = 0  # d

    def __post_init__(self) -> None:
        settle(self, "--window-choice gradient: {}".format)
        if self.high < self.low:
            raise UserError(f"--window-choice gradient: high={self.high} is below low={self.low}")

    def choose(
        self, norms: Tensor, first: int, loss: float, window: int, draw: torch.Generator
    ) -> tuple[int, int]:
        """Return first step and length of a window, given the gradient norms of steps 0..K1.

        ``first`` is ``K0``, the earliest first step; ``loss`` is the test loss after ``K1`` steps.
        """
        norms = norms.double()
        # No window starts where the student has diverged (norms of NaN or infinity), unless it
        # has in every step.
        diverged = ~norms.isfinite()
        norms = norms.masked_fill(diverged, 0)
        # -1 while the loss is high, 1 once it is low; 0 in between gives equal weights.
        sign = (loss < self.low) - (loss > self.high)
        scores = (sign * norms / self.temperature).masked_fill(diverged, -torch.inf)[first:]
        weights = torch.softmax(scores, 0).nan_to_num(1.0)
        step = first + int(torch.multinomial(weights, 1, generator=draw))
        # c_t, with c_0 = 0; the clamp makes e_t 0 if no norm changes.
        changes = torch.cat([norms[:1] * 0, norms.diff().abs()])
        change = float(changes[step] / changes.max().clamp(min=torch.finfo(torch.float64).tiny))
        return step, window + round(self.spread * (2 * change - 1))


@dataclass(frozen=True, kw_only=True)
class ChosenWindow(TrainAndTest):
    """Train-and-test objective with windows chosen by the student's gradients."""

    choice: GradientWindows

    def draws(self) -> Draws:
        """Return the random state at the start of the run."""
        # The longest window: W + d steps, for e_t = 1.
        return Draws(self.setup, self.setup.config.window + self.choice.spread, choose=True)

    def differentiate(self, task: Student, parameters: Tensors, plan: Plan) -> tuple[Tensor, ...]:
        """Choose a window and differentiate through it."""
        return super().differentiate(self.placed(task, parameters, plan), parameters, plan)

    @torch.no_grad()
    def placed(self, task: Student, parameters: Tensors, plan: Plan) -> Student:
        """Return the task with the chosen window: its first step, and the batches up to its end."""
        settings, draw = self.setup.config, task.draw
        trained = self.training(parameters, plan)
        images, labels, loss = (trained.keywords[name] for name in ("images", "labels", "loss"))
        theta, state, norms = task.start.to(images), None, []
        # Keep the norms only. The steps before the window are taken again later, so that memory
        # does not grow with K1.
        for step, batch in enumerate(draw.batches[: draw.before + 1]):
            # The same augmentation as when these steps are taken again.
            shown = images[batch] if task.dsa[0] is None else task.dsa[0](images[batch], step)
            own, model = labels[batch], self.setup.model
            found = ops.gradient(model, theta, shown, own, loss=loss, precise=settings.precise)
            norms.append(torch.linalg.vector_norm(found[1]))
            # A window may start at step K1: only the gradient of that step is needed.
            if step < draw.before:
                # The batch is augmented already, so the step gets its images and no augmentation.
                there = {"images": shown, "labels": own, "batches": [range(len(batch))]}
                theta, state = trained(theta, **there, state=state, return_state=True)
        numbers = torch.stack([*norms, self.test(theta, task, plan)[0]])
        # Average over the ranks, so that rounding cannot make them choose different windows.
        if self.shards is not None:
            self.shards.sum_(numbers)
            numbers /= self.shards.size
        place = generator(settings.seed, "distill", "student", *draw.names, "place")
        step, length = self.choice.choose(
            numbers[:-1].cpu(), settings.before[0], float(numbers[-1]), settings.window, place
        )
        return replace(task, draw=replace(draw, before=step, batches=draw.batches[: step + length]))

    @property
    def steps_before(self) -> int:
        """Mean number of gradients that are computed before a window.

        There is one for each step before it, and two for each of ``K1`` steps to choose it.
        """
        return super().steps_before + 2 * self.setup.config.before[1]


#: Rules that choose the window, by name; None keeps the window as drawn.
CHOICES = {"uniform": lambda: None, "gradient": GradientWindows}


def train_and_test(setup: Setup) -> TrainAndTest:
    """Return the train-and-test objective of a run with its ``--window-choice``."""
    spec, plain = setup.config.window_choice, TrainAndTest.of(setup)
    if (choice := made("--window-choice", "choice of windows", spec, CHOICES)) is None:
        return plain
    expect_kind(f"--window-choice {spec}", choice, GradientWindows)
    if choice.spread >= setup.config.window:
        raise UserError(
            f"--window-choice {spec}: the spread should be below --window {setup.config.window}, "
            f"because the shortest window has {setup.config.window} - spread steps"
        )
    return ChosenWindow(**vars(plain), choice=choice)
