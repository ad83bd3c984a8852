"""The memory plan of a run, which fits an outer iteration into the memory that there is.

A plan changes memory and time and, but for rounding, not the result: how many activations are kept
for the adjoint, and how many images go through the network at once. A short trial predicts the
needs of a plan. Where memory runs out all the same, the next leaner plan computes the same
iteration with the same draws.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, takewhile
from statistics import linear_regression
from time import perf_counter
from typing import Any, TypeVar

import torch
from torch import Tensor

from trajmatch import ops
from trajmatch.distill.gradients import Gradients, one_by_one
from trajmatch.distill.objectives import OuterGradient, Plan
from trajmatch.distill.parameters import LABELS
from trajmatch.distill.problem import Problem
from trajmatch.errors import UserError
from trajmatch.memory import free_bytes, is_out_of_memory, peak_bytes, reset_peak, used_bytes
from trajmatch.networks import ConvNet
from trajmatch.schema import flag

T = TypeVar("T")

_MEGA = 2**20

#: MB for the tape of a match where the configuration does not say it, and on a CUDA device those of
#: all matches, which run side by side there. N = 80 steps of 100 images at width 128 take 4 GB.
_TAPE_MB = 1024
_TAPE_MB_CUDA = 16384

#: Student steps of the trial: the time of many is on the line through these.
_TRIAL_STEPS = (1, 3)

#: Part of the free memory that a run may take, by what is predicted for it.
_PART = 0.9


@dataclass(frozen=True)
class Forecast:
    """Time and memory that a run will need.

    Attributes:
        plan: How it computes.
        seconds: Time of one outer iteration.
        peak_bytes: Peak memory: of the process on the CPU, of PyTorch's allocator on a GPU.
        more_bytes: The part of it that the run does not have yet.
        free_bytes: Memory that it can still get.
        kept_bytes: Activations that a match keeps for its adjoint, which are part of the peak.
    """

    plan: Plan
    seconds: float
    peak_bytes: int
    more_bytes: int
    free_bytes: int
    kept_bytes: int = 0

    def __str__(self) -> str:
        kept = f"{_size(self.kept_bytes)} of it for" if self.kept_bytes else "no"
        parts = f"kept activations{self.plan.parts}; {_size(self.free_bytes)} free"
        return f"{_size(self.peak_bytes)} of memory at most, {kept} {parts}"

    @property
    def fits(self) -> bool:
        """True if there is memory for it, with a reserve."""
        return self.more_bytes <= _PART * self.free_bytes


class WithinMemory:
    """Gradients by a plan, and by leaner ones where memory runs out.

    Args:
        gradients: Computes them.
        problem: What the run works on.
        plan: The plan to begin with.
        alone: False where other processes take part in every student step: they wait for this one,
            which therefore cannot begin an iteration again.
    """

    def __init__(
        self, gradients: Gradients, problem: Problem, plan: Plan, alone: bool = True
    ) -> None:
        self._gradients, self._problem, self._alone = gradients, problem, alone
        self.plan = plan

    def __call__(
        self, tasks: Sequence[Any], parameters: Mapping[str, Tensor]
    ) -> list[OuterGradient]:
        """Return the gradients of each task.

        Raises:
            UserError: Memory runs out by the leanest plan, or where others wait.
        """
        while True:
            found, reason = _attempt(lambda: self._gradients(tasks, parameters, self.plan))
            if found is not None:
                return found
            release(self._problem.device)
            images = len(parameters[LABELS])
            plan = leaner(self._problem, self.plan, images) if self._alone else None
            if plan is None:
                raise UserError(_no_memory(self._problem, self.plan, reason))
            warnings.warn(
                f"memory ran out ({self.plan}); going on with {plan}: slower, and the same result "
                "but for rounding",
                stacklevel=3,
            )
            self.plan = plan


def planned(problem: Problem, shared: bool = False) -> Plan:
    """Return the plan that the configuration asks for.

    Args:
        problem: What the run works on.
        shared: True if processes share every batch (``--parallel batch``); they keep no
            activations.
    """
    config, tape_mb = problem.config, problem.config.tape_mb
    if shared:
        tape_mb = 0
    elif tape_mb is None:
        tape_mb = _TAPE_MB if problem.device.type == "cpu" else _TAPE_MB_CUDA // config.matches
    return Plan(_MEGA * tape_mb, config.micro_batch)


def leaner(problem: Problem, plan: Plan, images: int) -> Plan | None:
    """Return the next plan that takes less memory: no kept activations, then half of the images.

    None where neither helps: a ConvNet on the CPU engine takes a few images at a time anyway, other
    networks treat images together, and one image cannot be divided.

    Args:
        problem: What the run works on.
        plan: The plan that takes too much.
        images: Synthetic images in all.
    """
    if plan.tape_bytes:
        return replace(plan, tape_bytes=0)
    engine = ops.engine_for(problem.model) == "engine"
    if problem.device.type == "cpu" and engine and isinstance(problem.model, ConvNet):
        return None
    batch = min(problem.config.batch_syn or images, images)
    now = min(plan.micro_batch or batch, batch)
    if now == 1 or not problem.treats_images_alone:
        return None
    return replace(plan, micro_batch=-(-now // 2))


def choose(problem: Problem, parameters: Mapping[str, Tensor], plan: Plan) -> Forecast:
    """Return the forecast of a plan, or of the first leaner one that should fit into memory.

    Of the leanest plan where none should fit: the prediction is no proof.

    Raises:
        UserError: Memory runs out in the trial of the leanest plan.
    """
    next_plan: Plan | None = plan
    while next_plan is not None:
        plan = next_plan
        found, reason = _attempt(partial(forecast, problem, parameters, plan))
        release(problem.device)
        if found is not None and found.fits:
            return found
        next_plan = leaner(problem, plan, len(parameters[LABELS]))
    if found is None:
        raise UserError(_no_memory(problem, plan, reason))
    return found


def forecast(problem: Problem, parameters: Mapping[str, Tensor], plan: Plan) -> Forecast:
    """Predict time and memory of a plan by a trial of at most ``1 + 1 + 3`` student steps.

    Memory grows by the parameter vectors of the steps (:meth:`Objective.vectors`), and by the
    activations that are kept; all else is in the trial. No random stream of the run is drawn from.
    """
    config, device = problem.config, problem.device
    images, before = len(parameters[LABELS]), peak_bytes(device)
    sizes = problem.objective.batch_sizes(images)
    counts = sorted({min(count, len(sizes)) for count in _TRIAL_STEPS})

    def tried(count: int) -> tuple[float, int]:
        objective, task = problem.objective.trial(images, count)
        began = perf_counter()
        one_by_one(objective, [task], parameters, plan)
        # Its numbers were read, so the device has finished.
        return perf_counter() - began, objective.vectors(count)

    tried(counts[0])  # allocates, and chooses algorithms
    reset_peak(device)
    times, vectors = zip(*map(tried, counts), strict=True)
    in_trial = peak_bytes(device)
    theta = sum(each.numel() * each.element_size() for each in problem.model.parameters())
    kept = _kept_bytes(problem, plan, sizes)
    grown = (problem.objective.vectors(len(sizes)) - vectors[-1]) * theta + kept
    grown -= _kept_bytes(problem, plan, sizes[: counts[-1]])
    peak = max(before, in_trial + grown)
    return Forecast(
        plan=plan,
        seconds=config.matches * _on_line(counts, times, len(sizes)),
        peak_bytes=peak,
        more_bytes=max(0, in_trial + grown - used_bytes(device)),
        free_bytes=free_bytes(device),
        kept_bytes=kept,
    )


def _attempt(function: Callable[[], T]) -> tuple[T | None, str]:
    """Call a function; return None and the reason if memory runs out, and nothing of its own."""
    try:
        return function(), ""
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return None, str(error)


def release(device: torch.device) -> None:
    """Give back memory that is kept for the next call."""
    gc.collect()
    ops.release_workspace()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def check_parts(problem: Problem) -> None:
    """Make sure that batches may be divided, where the configuration divides them.

    Raises:
        UserError: The network treats the images of a batch together.
    """
    micro_batch = problem.config.micro_batch
    if micro_batch is not None and not problem.treats_images_alone:
        raise UserError(
            f"--micro-batch {micro_batch} would change the result: the logits of an image depend "
            "on the others of its batch in this network, as they do with a batch norm; "
            "leave --micro-batch out"
        )


def _kept_bytes(problem: Problem, plan: Plan, sizes: Sequence[int]) -> int:
    """Return the bytes of activations kept for the adjoint: as many of the last steps as fit."""
    if plan.micro_batch is not None and max(sizes, default=0) > plan.micro_batch:
        return 0  # the loop over the steps is Python then, which keeps none
    tape = partial(ops.tape_bytes, precise=problem.config.precise, device=problem.device)
    step = {size: tape(problem.model, [size]) for size in set(sizes)}
    kept = takewhile(plan.tape_bytes.__ge__, accumulate(step[size] for size in reversed(sizes)))
    return max(kept, default=0)


def _on_line(counts: Sequence[int], times: Sequence[float], steps: int) -> float:
    """Return the time of a number of steps on the line through the measurements."""
    if len(counts) == 1:
        return times[0] * max(1, steps) / max(1, counts[0])
    slope, first = linear_regression(counts, times)
    return first + slope * steps if slope > 0 else times[-1] * steps / counts[-1]  # noise


def _size(count: int) -> str:
    """``85 MB`` or ``3.20 GB``."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _no_memory(problem: Problem, plan: Plan, reason: str) -> str:
    config, lines = problem.config, reason.splitlines()
    name = "window" if config.objective == "train-and-test" else "student_steps"
    said = f": {lines[0]}" if lines else ""
    return (
        f"memory ran out by the leanest plan ({plan}){said}; take fewer {flag(name)} (now "
        f"{getattr(config, name)}), a smaller --batch-syn or fewer --matches (now "
        f"{config.matches}), or another machine. What was written before is whole"
    )


#: Is given the forecast of a run before its first iteration.
Tell = Callable[[Forecast], None]
