"""Memory plans, which fit an outer iteration into the available memory.

A plan limits the activations kept for the adjoint, the matches that run side by side on a GPU, and
the images per network call. It affects memory and time; results change by rounding only. A short
trial forecasts memory and time. If memory still runs out, the iteration is repeated with the next
leaner plan and the same draws.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, takewhile
from statistics import linear_regression
from time import perf_counter
from typing import Any

from trajmatch import ops
from trajmatch.device import free_bytes, peak_bytes, reset_peak, used_bytes
from trajmatch.distill.gradients import Gradients, Graph, one_by_one
from trajmatch.distill.objectives import Plan, Results, read
from trajmatch.distill.parameters import LABELS
from trajmatch.distill.problem import Problem
from trajmatch.errors import UserError, warn
from trajmatch.images.parametrisation import Tensors
from trajmatch.ops.student import runs_by_images
from trajmatch.out_of_memory import attempt, release
from trajmatch.schema import flag

_MEGA = 2**20

#: Default size in MB of the tape (the kept activations). Matches that run side by side share it.
#: N = 80 steps of 100 images at width 128 take 4 GB.
_TAPE_MB = 1024
_TAPE_MB_CUDA = 16384

#: Student steps of the two trial runs, from which time is extrapolated linearly.
_TRIAL_STEPS = (1, 3)

#: Fraction of the free memory that a plan may use according to its forecast.
_PART = 0.9


@dataclass(frozen=True)
class Forecast:
    """Expected time and memory of a run.

    Attributes:
        plan: Memory plan.
        seconds: Time of one outer iteration in a single process, without a CUDA graph.
        peak_bytes: Peak memory of the process on the CPU, or of PyTorch's allocator on a GPU.
        more_bytes: Memory that is still to be allocated.
        free_bytes: Memory that is still available.
        kept_bytes: Part of the peak for activations that matches keep for their adjoints.
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
        """True if the memory still to be allocated is at most 90 % of the free memory."""
        return self.more_bytes <= _PART * self.free_bytes


class WithinMemory:
    """Gradient computation that falls back to leaner plans if memory runs out.

    With ``alone=False`` (ranks share student steps), it raises UserError instead.
    """

    def __init__(
        self, gradients: Gradients, problem: Problem, plan: Plan, alone: bool = True
    ) -> None:
        self._gradients, self._problem, self._alone = gradients, problem, alone
        self.plan = plan

    def __call__(self, tasks: Sequence[Any], parameters: Tensors) -> list[Results]:
        """Return the results of the tasks; UserError if no leaner plan is left."""
        while True:
            found, reason = attempt(lambda: self._gradients(tasks, parameters, self.plan))
            if found is not None:
                return found
            self.make_room()
            images = len(parameters[LABELS])
            # Other ranks that share student steps wait inside one, so this rank cannot start again.
            plan = leaner(self._problem, self.plan, images) if self._alone else None
            if plan is None:
                raise UserError(_no_memory(self._problem, self.plan, reason))
            warn(
                f"memory ran out ({self.plan}); continuing, now {plan}: this is slower, but "
                "gives the same result up to rounding"
            )
            self.plan = plan

    def make_room(self) -> None:
        """Free recorded graphs, the engine's workspace and PyTorch's cache."""
        if isinstance(self._gradients, Graph):
            self._gradients.replayed.forget()
        release(self._problem.device)


def planned(problem: Problem, shared: bool = False, tasks: int = 1) -> Plan:
    """Return the configured plan.

    ``shared`` is True if ranks share student steps; ``tasks`` is the number of matches that run
    side by side.
    """
    tape_mb = problem.config.tape_mb
    # Shared student steps run as a Python loop, which keeps no activations.
    if shared:
        tape_mb = 0
    elif tape_mb is None:
        tape_mb = _TAPE_MB if problem.device.type == "cpu" else _TAPE_MB_CUDA
    return Plan(_MEGA * tape_mb // tasks, problem.config.micro_batch, tasks)


def leaner(problem: Problem, plan: Plan, images: int) -> Plan | None:
    """Return a plan that needs less memory than ``plan``; None if there is none.

    Apply the first of these that changes ``plan``: keep no activations; run half as many matches
    side by side; halve the micro-batch.
    """
    if plan.tape_bytes:
        return replace(plan, tape_bytes=0)
    if plan.tasks > 1:
        return replace(plan, tasks=-(-plan.tasks // 2))
    # The CPU engine takes ConvNet and VGG11 a few images at a time anyway.
    if problem.device.type == "cpu" and runs_by_images(problem.model):
        return None
    batch = min(problem.config.batch_syn or images, images)
    now = min(plan.micro_batch or batch, batch)
    # Batch norm needs the whole batch.
    if now == 1 or not problem.treats_images_alone:
        return None
    return replace(plan, micro_batch=-(-now // 2))


def choose(problem: Problem, parameters: Tensors, plan: Plan) -> Forecast:
    """Return the forecast of the first plan that fits into memory: ``plan`` or a leaner one.

    If none fits, return the forecast of the leanest plan; UserError if even its trial fails.
    """
    while True:
        found, reason = attempt(partial(forecast, problem, parameters, plan))
        release(problem.device)
        lean = leaner(problem, plan, len(parameters[LABELS]))
        # Forecasts can be wrong, so let the run try the leanest plan.
        if found is not None and (found.fits or lean is None):
            return found
        if lean is None:
            raise UserError(_no_memory(problem, plan, reason))
        plan = lean


def forecast(problem: Problem, parameters: Tensors, plan: Plan) -> Forecast:
    """Predict time and memory of a plan by a trial that does not touch the run's random state."""
    config, device = problem.config, problem.device
    images, before = len(parameters[LABELS]), peak_bytes(device)
    sizes = problem.objective.batch_sizes(images)
    counts = sorted({min(count, len(sizes)) for count in _TRIAL_STEPS})

    def tried(count: int) -> tuple[float, int]:
        objective, task = problem.objective.trial(images, count)
        began = perf_counter()
        # Reading the loss waits for the device, before the clock is read.
        read(one_by_one(objective, [task], parameters, plan), parameters)
        return perf_counter() - began, objective.vectors(count)

    tried(counts[0])  # warm-up: allocations and choice of algorithms
    held = used_bytes(device)
    reset_peak(device)
    times, vectors = zip(*map(tried, counts), strict=True)
    in_trial = peak_bytes(device)
    theta = sum(each.numel() * each.element_size() for each in problem.model.parameters())
    # Beyond the trial, memory grows only by the parameter vectors [P] of further steps, by their
    # labels, and by kept activations.
    kept = _kept_bytes(problem, plan, sizes)
    grown = (problem.objective.vectors(len(sizes)) - vectors[-1]) * theta + kept
    grown += sum(sizes[counts[-1] :]) * parameters[LABELS][0].nbytes
    # The measured peak already contains the activations that the trial kept.
    grown -= _kept_bytes(problem, plan, sizes[: counts[-1]])
    # The trial runs one task. Each further task adds its own memory, without what was held before.
    needed = in_trial + grown + (plan.tasks - 1) * (in_trial - held + grown)
    return Forecast(
        plan=plan,
        seconds=config.matches * _on_line(counts, times, len(sizes)),
        # `before` is an earlier peak of the process, e.g. from loading the data.
        peak_bytes=max(before, needed),
        more_bytes=max(0, needed - used_bytes(device)),
        free_bytes=free_bytes(device),
        kept_bytes=plan.tasks * kept,
    )


def check_parts(problem: Problem) -> None:
    """Raise UserError if ``--micro-batch`` is set and images of a batch depend on each other."""
    micro_batch = problem.config.micro_batch
    if micro_batch is not None and not problem.treats_images_alone:
        raise UserError(
            f"--micro-batch {micro_batch} would change the result, because in this network the "
            "logits of an image depend on the other images of its batch, as with batch norm; "
            "leave --micro-batch out"
        )


def _kept_bytes(problem: Problem, plan: Plan, sizes: Sequence[int]) -> int:
    """Return the bytes of the activations that the engine keeps in a task."""
    if plan.micro_batch is not None and max(sizes, default=0) > plan.micro_batch:
        return 0  # the student steps then run as a Python loop, which keeps no activations
    tape = partial(ops.tape_bytes, precise=problem.config.precise, device=problem.device)
    step = {size: tape(problem.model, [size]) for size in set(sizes)}
    # The engine keeps as many steps as fit, counted from the last.
    kept = takewhile(plan.tape_bytes.__ge__, accumulate(step[size] for size in reversed(sizes)))
    return max(kept, default=0)


def _on_line(counts: Sequence[int], times: Sequence[float], steps: int) -> float:
    """Extrapolate the time of ``steps`` student steps linearly."""
    # A student with one step or none has a single measurement.
    if len(counts) == 1:
        return times[0] * max(1, steps) / max(1, counts[0])
    slope, first = linear_regression(counts, times)
    # If the slope is not positive, the measurements are noise: use the last one alone.
    return first + slope * steps if slope > 0 else times[-1] * steps / counts[-1]


def _size(count: int) -> str:
    """Format bytes as ``85 MB`` or ``3.20 GB``."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _no_memory(problem: Problem, plan: Plan, reason: str) -> str:
    config, said = problem.config, reason.splitlines()[0]
    name = "window" if config.objective == "train-and-test" else "student_steps"
    return (
        f"memory ran out even with the leanest plan ({plan}): {said}; lower {flag(name)} (now "
        f"{getattr(config, name)}) or --batch-syn, or use a machine with more memory. Files "
        "already written are intact"
    )


#: Callback that receives the forecast before the first iteration.
Tell = Callable[[Forecast], None]
