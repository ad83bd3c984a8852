"""Time and memory of one outer iteration: ours beside eager, ``torch.func`` and compiled PyTorch.

Same process, same numerics: convolutions in TF32 on a GPU, as PyTorch has them by default.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch

from gpu_stages import baselines
from gpu_stages.baselines import Gradients, Implementation, Problem
from gpu_stages.measure import measure
from gpu_stages.settings import Record, Settings
from trajmatch.recording import call_again, cuda_graph

#: Width, batch and student steps; the first is that of DATM's CIFAR-10 recipe with IPC 10.
SIZES = [(128, 100, 80), (32, 10, 20), (32, 50, 10), (128, 50, 6), (128, 10, 80)]
SMALLEST = [(4, 3, 2)]
#: Longest timing of one implementation at one size, in seconds; compilation is not in it.
LONGEST = 5.0


def run(settings: Settings, record: Record) -> None:
    """All implementations at all sizes; one that fails is recorded, and only ours is a fault.

    What has to be compiled comes after all else: it may take what is left of the time.
    """
    torch.backends.cudnn.allow_tf32 = True
    record.put("tf32", {"convolutions": True, "products": torch.backends.cuda.matmul.allow_tf32})
    table: dict[str, dict[str, Any]] = {}
    ours: dict[str, Gradients] = {}
    for implementations in (eager, compiled):
        for width, batch, steps in SMALLEST if settings.quick else SIZES:
            size = f"width {width}, batch {batch}, N {steps}"
            row = table.setdefault(size, {"width": width, "batch": batch, "steps": steps})
            problem = of_size(width, batch, steps, settings)
            for name, implementation in implementations(problem, settings):
                row[name], gradients = timed(implementation, settings, ours.get(size))
                if gradients is not None and name == "trajmatch":
                    ours[size] = gradients
                row["ratios"] = ratios(row)
                record.put("table", table)
                print(f"{size}, {name}: {summary(row[name])}", flush=True)
            if "error" in row["trajmatch"] and implementations is eager:
                record.fault(f"outer iteration, {size}: {row['trajmatch']['error']}")


def of_size(width: int, batch: int, steps: int, settings: Settings) -> Problem:
    """The problem of that size, with small images where all is to be small."""
    if settings.quick:
        return Problem.of_size(width, batch, steps, settings.device, image_size=8, depth=2)
    return Problem.of_size(width, batch, steps, settings.device)


def eager(problem: Problem, settings: Settings) -> Iterator[tuple[str, Implementation]]:
    """Names and functions of what runs at once."""
    yield "trajmatch", baselines.trajmatch(problem)
    if settings.device == "cuda":
        yield "trajmatch, CUDA graph", baselines.trajmatch_graph(problem, cuda_graph)
    else:
        yield "trajmatch, no graph recorded", baselines.trajmatch_graph(problem, call_again)
    yield "eager unroll", baselines.eager_unroll(problem)
    yield "eager unroll, channels last", baselines.eager_unroll(problem.with_channels_last())
    yield "func adjoint", baselines.func_adjoint(problem)


def compiled(problem: Problem, settings: Settings) -> Iterator[tuple[str, Implementation]]:
    """Name and function of what is compiled first: on a GPU with CUDA graphs."""
    torch.compiler.reset()
    if settings.quick:
        yield "compiled adjoint", baselines.compiled_adjoint(problem, backend="aot_eager")
    else:
        mode = "reduce-overhead" if settings.device == "cuda" else "default"
        yield "compiled adjoint", baselines.compiled_adjoint(problem, mode=mode)


def timed(
    implementation: Implementation, settings: Settings, truth: Gradients | None
) -> tuple[dict[str, Any], Gradients | None]:
    """What an implementation took, and how far its gradients are from ``truth``."""
    began = time.perf_counter()
    try:
        gradients = implementation()
        if settings.device == "cuda":
            torch.cuda.synchronize()
        first = time.perf_counter() - began
        times = measure(implementation, settings.device, 2 if settings.quick else 7, 2, LONGEST)
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        return {"error": "does not fit into the device's memory"}, None
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:1000]}, None
    found = {"first_call_seconds": first, **times}
    if truth is not None:
        found["difference"] = [
            float((ours - theirs).norm() / theirs.norm())
            for ours, theirs in zip(gradients, truth, strict=True)
        ]
    return found, gradients


def ratios(row: dict[str, Any]) -> dict[str, float]:
    """How many times longer than ours the others took, by their medians."""
    measured = {
        name: entry["median"]
        for name, entry in row.items()
        if isinstance(entry, dict) and "median" in entry
    }
    ours = measured.pop("trajmatch", None)
    if ours is None:
        return {}
    return {name: seconds / ours for name, seconds in measured.items()}


def summary(entry: dict[str, Any]) -> str:
    """An entry of the table in a few words."""
    if "error" in entry:
        return str(entry["error"])
    memory = "" if entry["peak_bytes"] is None else f", {entry['peak_bytes'] / 2**30:.2f} GiB"
    return f"{1000 * entry['median']:.2f} ms{memory}"
