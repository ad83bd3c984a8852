"""Measurements in processes of their own: peak memory, and the cells of one shape.

A process of its own has a peak that is its own, and gives all its memory back.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

from trajmatch.bench.sizes import Size
from trajmatch.children import Emit, Failed, Job, children
from trajmatch.errors import UserError
from trajmatch.memory import peak_bytes, reset_peak

#: While memory is measured, the C library gives freed blocks back at once: the peak is what was in
#: use at a time and not what fragments between uses, which would count against the baselines.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}

Results = Generator[dict[str, Any], None, None]


def measure_peak(size: Size, variant: str, device: str) -> dict[str, Any]:
    """Peak memory of one outer iteration in a fresh process.

    Args:
        size: The size.
        variant: Name of the variant.
        device: Where it runs.

    Returns:
        ``peak_bytes`` during the iteration and ``idle_bytes`` before it, of the process on the CPU
        and of PyTorch's allocator on a GPU, and ``whole_life``, whether the peak is that of the
        whole life of the process because the system does not let it be reset. Or ``unavailable``:
        why the variant does not run.
    """
    job = {"job": "peak", "size": asdict(size), "variant": variant, "device": device}
    (result,) = run_job(job, ALLOCATOR)
    return result


def measure_cells(sizes: Sequence[Size], **settings: Any) -> Results:
    """The cells of sizes in a fresh process, each as soon as it is finished.

    Args:
        sizes: The sizes, of one shape, so that compiled steps serve all.
        settings: Arguments of :func:`trajmatch.bench.outer.measure_cell`, as JSON can hold them.

    Yields:
        The cells.
    """
    return run_job({"job": "cells", "sizes": [asdict(size) for size in sizes], **settings})


def run_job(job: Job, environment: Mapping[str, str] = MappingProxyType({})) -> Results:
    """Start a process for a job and yield its results; it ends with the iteration.

    Args:
        job: The job, as JSON can hold it.
        environment: Variables for the process, besides those of this one.

    Yields:
        The results.

    Raises:
        UserError: The process failed, for want of memory for example.
    """
    try:
        with children(work_on, [job], environment) as results:
            yield from results
    except Failed as failure:
        raise UserError(
            f"the benchmark's process for {job} ended with status {failure.status} (-9 is what "
            "the system does where memory runs out); choose a smaller size"
        ) from failure


def peak(job: Job, emit: Emit) -> None:
    """Runs a variant once and tells the peak of memory."""
    from trajmatch.bench.problem import make_problem
    from trajmatch.bench.variants import VARIANTS

    device, variant = job["device"], VARIANTS[job["variant"]]
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


def cells(job: Job, emit: Emit) -> None:
    """Measures sizes one after the other."""
    from trajmatch.bench.outer import measure_cell
    from trajmatch.memory import keep_freed_memory

    keep_freed_memory()  # as in the program trajmatch; it serves all variants
    settings = {key: value for key, value in job.items() if key not in ("job", "sizes")}
    for size in job["sizes"]:
        emit(measure_cell(Size(**size), **settings))


def first_line(error: BaseException) -> str:
    """An exception in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


JOBS: dict[str, Callable[[Job, Emit], None]] = {"peak": peak, "cells": cells}


def work_on(job: Job, emit: Emit) -> None:
    """Measure as a child process what ``job["job"]`` names; see :func:`run_job`."""
    JOBS[job["job"]](job, emit)
