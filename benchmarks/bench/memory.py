"""Peak memory of a variant, in a process of its own, and what it would be after more steps."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from bench.optimisers import WITH_OPTIMISER
from bench.problem import make_problem
from bench.process import in_process
from bench.sizes import Size
from bench.timing import LinearFit, fit_line
from bench.variants import VARIANTS, first_line
from trajmatch.children import Emit, Job
from trajmatch.device import free_bytes, peak_bytes, reset_peak

#: A variant that needs more than this is not run; see :func:`limit_bytes`.
LARGEST = 20 * 10**9
#: Part of the memory that is free which a variant may use.
PART_OF_FREE = 0.6
#: Numbers of steps at which memory is measured to predict it.
STEPS = (1, 3)
#: While memory is measured, the C library gives freed blocks back at once: the peak is what was in
#: use at a time, without fragments between uses, which would count against the baselines.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}


def limit_bytes(device: str) -> int:
    """Memory that a variant may need here: 20 GB, or 60 % of what is free, whichever is less."""
    return min(LARGEST, int(PART_OF_FREE * free_bytes(device)))


def memory_over_steps(
    size: Size, variant: str, device: str, steps: Sequence[int] = STEPS
) -> dict[str, Any]:
    """Measure the peak memory of a variant at a few numbers of steps.

    Args:
        size: The size; its own number of steps is not used.
        variant: Name of the variant.
        device: Where it runs.
        steps: Numbers of steps, at least two.

    Returns:
        ``steps``; ``peaks``, what :func:`measure_peak` gives at each;
        ``intercept`` and ``slope``, in bytes, of the line through the peaks. Or ``unavailable``:
        why the variant does not run.
    """
    measured = []
    for count in steps:
        measured.append(measure_peak(size.with_steps(count), variant, device))
        if "unavailable" in measured[-1]:
            return measured[-1]
    line = fit_line(steps, [each["peak_bytes"] for each in measured])
    return {
        "steps": list(steps),
        "peaks": measured,
        "intercept": line.intercept,
        "slope": line.slope,
    }


def predicted_bytes(memory: dict[str, Any], steps: int) -> int:
    """Peak memory after that many steps, by the line of :func:`memory_over_steps`."""
    return round(LinearFit(memory["intercept"], memory["slope"]).at(steps))


def memory_of(
    size: Size, variants: Mapping[str, Sequence[int]], predicted_at: int, device: str
) -> dict[str, Any]:
    """Measure variants of one shape and predict their memory for more steps.

    Args:
        size: The shape.
        variants: Numbers of steps at which each is measured.
        predicted_at: Number of steps to predict.
        device: Where they run.

    Returns:
        ``size``, ``predicted_at``, and ``variants``: of each :func:`memory_over_steps` with
        ``predicted_bytes``.
    """
    found = {name: memory_over_steps(size, name, device, n) for name, n in variants.items()}
    for each in found.values():
        if "unavailable" not in each:
            each["predicted_bytes"] = predicted_bytes(each, predicted_at)
    about = {"width": size.width, "batch": size.batch}
    return {"size": about, "predicted_at": predicted_at, "variants": found}


def measure_peak(size: Size, variant: str, device: str) -> dict[str, Any]:
    """Measure the peak memory of one outer iteration in a fresh process.

    Args:
        size: The size.
        variant: Name of the variant.
        device: Where it runs.

    Returns:
        ``peak_bytes`` during the iteration and ``idle_bytes`` before it, of the process on the CPU
        and of PyTorch's allocator on a GPU, and ``whole_life``: true if the peak is that of the
        whole life of the process because the system does not let it be reset. Or ``unavailable``:
        why the variant does not run.
    """
    job = {"size": asdict(size), "variant": variant, "device": device}
    (result,) = in_process(peak, job, ALLOCATOR)
    return result


def peak(job: Job, emit: Emit) -> None:
    """Run a variant once and emit the peak of memory; see :func:`measure_peak`."""
    device, variant = job["device"], {**VARIANTS, **WITH_OPTIMISER}[job["variant"]]
    problem = make_problem(Size(**job["size"]), device)
    if job["variant"] == "compiled_adjoint":
        try:
            variant(problem.first(1))  # the compiler's own memory does not count
        except RuntimeError as error:
            emit({"unavailable": first_line(error)})
            return
    gc.collect()
    whole_life = not reset_peak(device)
    idle = peak_bytes(device)
    variant(problem)
    emit({"peak_bytes": peak_bytes(device), "idle_bytes": idle, "whole_life": whole_life})
