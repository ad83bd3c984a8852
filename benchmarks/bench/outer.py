"""One cell of the record: the outer iteration of a size, ours beside all baselines."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from bench.agreement import ALL_STEPS, FIRST_STEP, agreement
from bench.flops import outer_flops
from bench.memory import limit_bytes, predicted_bytes
from bench.problem import Problem, make_problem
from bench.process import in_process
from bench.sizes import Size
from bench.timing import alternate, fit_line, seconds, summary
from bench.variants import (
    BASELINES,
    OURS,
    VARIANTS,
    OuterGradient,
    Variant,
    first_line,
    func_adjoint,
)
from trajmatch.children import Emit, Job
from trajmatch.memory import keep_freed_memory

#: Rounds of every measurement, at least.
ROUNDS = 5
#: Where a variant's rounds would take longer, it is measured at fewer steps.
SECONDS_PER_VARIANT = 30.0
#: How much longer ours may take, so that it is measured at most sizes as they are.
PATIENCE = 4
#: The most steps at which it is then measured, and how far a point may lie from the line.
MOST_STEPS = 10
STRAIGHT = 0.1

#: What a row of a cell can be; see :func:`measure_cell`.
STATUSES = ("measured", "extrapolated", "not_linear", "does_not_fit", "unavailable", "left_out")


def measure_cell(
    size: Size,
    *,
    device: str = "cpu",
    rounds: int = ROUNDS,
    seconds_per_variant: float = SECONDS_PER_VARIANT,
    memory: Mapping[str, dict[str, Any]] | None = None,
    leave_out: Mapping[str, str] | None = None,
    variants: Mapping[str, Variant] = VARIANTS,
) -> dict[str, Any]:
    """Time all variants of an outer iteration in alternating rounds of one process.

    A variant whose rounds would take longer than allowed is measured at three numbers of steps up
    to 10 and put on the line through them. All variants are compared with ``torch.func`` in float64
    over the first step, and with the first baseline over the smallest number of steps that
    each was measured at.

    Args:
        size: The size.
        device: Where to run.
        rounds: Timed rounds of each variant.
        seconds_per_variant: What they may take, about.
        memory: What each variant needs (:func:`bench.memory.memory_over_steps`). One that
            needs more than :func:`bench.memory.limit_bytes` is not run.
        leave_out: Variants that are not to be run, each with the reason.
        variants: What to measure.

    Returns:
        What JSON can hold: ``size``; ``device``; ``rows`` by variant, each with a ``status`` out of
        :data:`STATUSES` and either ``seconds`` (``median``, ``min``, ``rounds``) with
        ``measured_at_n``, or the ``reason`` why there are none; ``agreement``; ``ratios`` of each
        of ours, by baseline; ``gflops`` of each variant, at nine forward passes a step.
    """
    rows = _not_run(size, device, memory or {}, leave_out or {})
    problem = make_problem(size, device)
    plans: dict[str, list[int]] = {}
    for name, variant in variants.items():
        if name in rows:
            continue
        try:
            step_seconds = _warm_up(problem, variant, device)
        except RuntimeError as error:
            if name != "compiled_adjoint":
                raise
            rows[name] = {"status": "unavailable", "reason": first_line(error)}
            continue
        allowed = seconds_per_variant * (PATIENCE if name in OURS else 1)
        plans[name] = plan_steps(size.steps, step_seconds * (rounds + 1), allowed)

    agreed = _compare(problem, {name: variants[name] for name in plans}, plans, device)
    calls: dict[tuple[str, int], Callable[[], OuterGradient]] = {
        (name, steps): partial(variants[name], problem.first(steps))
        for name, counts in plans.items()
        for steps in counts
    }
    taken = alternate(calls, rounds, device)
    for name, counts in plans.items():
        rows[name] = row(size.steps, {steps: taken[name, steps] for steps in counts})
    return {
        "size": asdict(size),
        "device": device,
        "rows": {name: rows[name] for name in variants},
        "agreement": agreed,
        "ratios": ratios(rows),
        "gflops": {
            name: outer_flops(size) / each["seconds"]["median"] / 1e9
            for name, each in rows.items()
            if "seconds" in each
        },
    }


def measure_cells(sizes: Sequence[Size], **settings: Any) -> Generator[dict[str, Any], None, None]:
    """Measure cells in a fresh process and yield each as soon as it is finished.

    Args:
        sizes: The sizes, of one shape, so that compiled steps serve all.
        settings: Arguments of :func:`measure_cell`, as JSON can hold them.
    """
    return in_process(cells, {"sizes": [asdict(size) for size in sizes], "settings": settings})


def cells(job: Job, emit: Emit) -> None:
    """Measure sizes one after the other; see :func:`measure_cells`."""
    keep_freed_memory()  # as in the program trajmatch; it serves all variants
    for size in job["sizes"]:
        emit(measure_cell(Size(**size), **job["settings"]))


def plan_steps(steps: int, seconds_per_step: float, allowed: float) -> list[int]:
    """Choose the numbers of steps at which a variant is measured.

    Args:
        steps: The number of interest.
        seconds_per_step: What each step of it costs, all rounds together.
        allowed: Seconds that may be spent.

    Returns:
        The number itself; or, where that takes too long and more than them, three numbers up to 10
        that do not, or 1, 2 and 3 where nothing does.
    """
    if steps * seconds_per_step <= allowed or steps <= 3:
        return [steps]
    # a third and two thirds of the steps are measured too: twice as many in all
    most = max(3, min(MOST_STEPS, steps, int(allowed / (2 * seconds_per_step))))
    if 2 * most >= steps:
        return [steps]  # which is no more work
    return [most // 3, 2 * most // 3, most]


def row(steps: int, taken: Mapping[int, list[float]]) -> dict[str, Any]:
    """Return a variant's row, from the seconds of all rounds at each number of steps."""
    if list(taken) == [steps]:
        return {"status": "measured", "measured_at_n": [steps], "seconds": summary(taken[steps])}
    points = {count: summary(rounds) for count, rounds in taken.items()}
    lines = {
        statistic: fit_line(list(points), [point[statistic] for point in points.values()])
        for statistic in ("median", "min")
    }
    found = {
        "measured_at_n": list(points),
        "at_n": {str(count): point for count, point in points.items()},
        "distance_from_line": {name: line.error for name, line in lines.items()},
    }
    # noise only ever adds time: a line shows best in the minima
    if lines["min"].error > STRAIGHT:
        reason = f"a minimum lies {lines['min'].error:.0%} from the line through all of them"
        return {"status": "not_linear", "reason": reason, **found}
    by_round = [
        fit_line(list(taken), list(each)).at(steps) for each in zip(*taken.values(), strict=True)
    ]
    at_size = {statistic: line.at(steps) for statistic, line in lines.items()}
    return {"status": "extrapolated", "seconds": {**at_size, "rounds": by_round}, **found}


def ratios(rows: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the time of each baseline over that of each of ours, by medians.

    Of a baseline with several variants the fastest counts. One without a time has no ratio.
    """

    def median(name: str) -> list[float]:
        found = rows.get(name, {}).get("seconds")
        return [found["median"]] if found else []

    best = {
        baseline: min(times)
        for baseline, names in BASELINES.items()
        if (times := [time for name in names for time in median(name)])
    }
    return {
        ours: {baseline: time / mine for baseline, time in best.items()}
        for ours in OURS
        for mine in median(ours)
    }


def _not_run(
    size: Size,
    device: str,
    memory: Mapping[str, dict[str, Any]],
    leave_out: Mapping[str, str],
) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {
        name: {"status": "left_out", "reason": reason} for name, reason in leave_out.items()
    }
    limit = limit_bytes(device)
    for name, found in memory.items():
        if "unavailable" in found:
            rows[name] = {"status": "unavailable", "reason": found["unavailable"]}
        elif (needed := predicted_bytes(found, size.steps)) > limit:
            rows[name] = {
                "status": "does_not_fit",
                "reason": f"needs {needed / 1e9:.1f} GB of {limit / 1e9:.1f} GB",
                "predicted_bytes": needed,
                "limit_bytes": limit,
            }
    return rows


def _warm_up(problem: Problem, variant: Variant, device: str) -> float:
    """Run a variant twice, first to compile and allocate; return the seconds of a step."""
    short = problem.first(min(2, problem.size.steps))
    variant(short)
    return seconds(lambda: variant(short), device) / short.size.steps


def _compare(
    problem: Problem,
    variants: Mapping[str, Variant],
    plans: Mapping[str, list[int]],
    device: str,
) -> dict[str, Any]:
    """Compare the first step with float64 and, in ``all_steps``, all with the first baseline."""
    kind = torch.device(device).type
    first = problem.first(1)
    early = {name: variant(first) for name, variant in variants.items()}
    exact = agreement(
        {"float64": func_adjoint(first.double()), **early}, "float64", FIRST_STEP[kind]
    )

    steps = min(max(counts) for counts in plans.values())
    baselines = [name for names in BASELINES.values() for name in names if name in plans]
    late = {name: variant(problem.first(steps)) for name, variant in variants.items()}
    whole = agreement(late, (baselines or list(plans))[0], ALL_STEPS[kind])
    return {
        **exact,
        "steps": 1,
        "all_steps": {"steps": steps, **whole},
        "agree": exact["agree"] and whole["agree"],
    }
