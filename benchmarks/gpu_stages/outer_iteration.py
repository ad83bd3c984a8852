"""Time and memory of one outer iteration: ours beside eager and compiled PyTorch, and JAX.

Same process, same numerics: convolutions in TF32 on a GPU, as PyTorch has them by default. The
variants are those of :mod:`bench.variants`, and ours besides as a graph, with a tape, and with
every choice of the blocks that run as one kernel. The stage ``pixels`` times some of them on images
of 64 and 128 pixels, as Tiny-ImageNet and ImageNet's subsets have.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import torch
from bench.agreement import difference
from bench.problem import Problem, make_problem
from bench.sizes import Size
from bench.variants import TRACED_VARIANTS, VARIANTS, OuterGradient
from bench.variants import trajmatch as ours

from gpu_stages.measure import measure
from gpu_stages.replays import record_for, replayed
from gpu_stages.settings import Record, Settings
from trajmatch import ops
from trajmatch.distill.objectives import Plan
from trajmatch.memory import is_out_of_memory
from trajmatch.out_of_memory import release
from trajmatch.recording import cuda_graph

SIZES = {
    # the first is the size of DATM's CIFAR-10 recipe with IPC 10
    "outer_iteration": [Size(128, 100, 80), Size(32, 10, 20), Size(128, 10, 80), Size(32, 50, 10)],
    # depths of the papers' networks for these images
    "pixels": [Size(128, 10, 10, depth=4, image_size=64), Size(128, 10, 10, 5, 128)],
}
SMALLEST = {
    "outer_iteration": [Size(4, 3, 2, depth=2, image_size=8)],
    "pixels": [Size(4, 3, 2, depth=2, image_size=16)],
}
#: Implementations that the stage ``pixels`` times.
OF_PIXELS = ("trajmatch", "trajmatch_graph", "trajmatch_tape_graph", "eager_unroll_nchw")
#: Longest timing of one implementation at one size, in seconds; compilation is not in it.
LONGEST = 2.0
#: Memory for the tape: all steps of the largest size fit.
TAPE_BYTES = 16 * 2**30
#: Choices of ops.cuda_blocks beside the default.
BLOCKS = ("library", "tf32", "fp16")

Implementation = Callable[[], OuterGradient]


def run(settings: Settings, record: Record) -> None:
    """Time all implementations at all sizes; a failure of ours is a fault, others are recorded.

    What has to be compiled comes after all else: it may take what is left of the time.
    """
    torch.backends.cudnn.allow_tf32 = True
    record.put("tf32", {"convolutions": True, "products": torch.backends.cuda.matmul.allow_tf32})
    if find_spec("jax") is None:
        record.put("left_out", {"jax": "JAX is not installed"})
    table: dict[str, dict[str, Any]] = {}
    truths: dict[str, OuterGradient | None] = {}
    pixels = settings.stage == "pixels"
    for implementations in (eager,) if pixels else (eager, compiled, in_jax):
        for size in (SMALLEST if settings.quick else SIZES)[settings.stage]:
            key = f"{size.key}, {size.image_size} pixels"
            row = table.setdefault(key, {})
            problem = make_problem(size, settings.device)
            for name, implementation in implementations(problem, settings):
                if pixels and name not in OF_PIXELS:
                    continue
                row[name], gradient = timed(implementation, settings, truths.get(key))
                if name == "trajmatch":
                    truths[key] = gradient
                row["ratios"] = ratios(row)
                record.put("table", table)
                print(f"{key}, {name}: {summary(row[name])}", flush=True)
                if name.startswith("trajmatch") and "error" in row[name]:
                    record.fault(f"{key}, {name}: {row[name]['error']}")


def eager(problem: Problem, settings: Settings) -> Iterator[tuple[str, Implementation]]:
    """Names and functions of what runs at once."""
    yield "trajmatch", partial(VARIANTS["trajmatch"], problem)
    taped = Plan(tape_bytes=TAPE_BYTES)
    graph = replayed(problem, record_for(settings))
    yield "trajmatch_graph", lambda: graph()[0]
    if settings.device == "cuda":
        yield "trajmatch_tape", partial(ours, problem, TAPE_BYTES)
        taped_graph = replayed(problem, cuda_graph, plan=taped)
        yield "trajmatch_tape_graph", lambda: taped_graph()[0]
        for kind in BLOCKS:
            fused = replayed(problem, cuda_graph, plan=taped)
            yield f"trajmatch_{kind}_tape_graph", with_blocks(kind, lambda run=fused: run()[0])
    for name in ("eager_unroll_nchw", "eager_unroll_nhwc", "func_adjoint"):
        yield name, partial(VARIANTS[name], problem)


def with_blocks(kind: str, implementation: Implementation) -> Implementation:
    """Return the implementation with another choice of ops.cuda_blocks at every call."""

    def chosen() -> OuterGradient:
        with ops.cuda_blocks(kind):
            return implementation()

    return chosen


def compiled(problem: Problem, settings: Settings) -> Iterator[tuple[str, Implementation]]:
    """Name and function of what is compiled first: on a GPU with CUDA graphs."""
    variants = TRACED_VARIANTS if settings.quick else VARIANTS
    yield "compiled_adjoint", partial(variants["compiled_adjoint"], problem)


def in_jax(problem: Problem, settings: Settings) -> Iterator[tuple[str, Implementation]]:
    """Name and function of the whole outer gradient under ``jax.jit``, where JAX is installed."""
    if find_spec("jax") is None:
        return
    torch.cuda.empty_cache()  # what PyTorch keeps for later is no use to JAX

    @cache
    def prepared() -> Implementation:
        from gpu_stages.jax_adjoint import outer_gradient

        return outer_gradient(problem)

    yield "jax", lambda: prepared()()


def timed(
    implementation: Implementation, settings: Settings, truth: OuterGradient | None
) -> tuple[dict[str, Any], OuterGradient | None]:
    """Time an implementation, and compare its result with ``truth``, where there is one."""
    began = time.perf_counter()
    try:
        gradient = implementation()
        first = time.perf_counter() - began
        rounds = 2 if settings.quick else 7
        times = measure(implementation, settings.device, rounds, 2, LONGEST)
    except Exception as error:
        if is_out_of_memory(error):
            release(torch.device(settings.device))
            return {"error": "does not fit into the device's memory"}, None
        return {"error": f"{type(error).__name__}: {error}"[:1000]}, None
    found = {"first_call_seconds": first, **times}
    if truth is not None:
        found["difference"] = difference(gradient, truth)
    return found, gradient


def ratios(row: dict[str, Any]) -> dict[str, float]:
    """Return how many times longer than ours the others took, by their medians."""
    medians = {name: entry["median"] for name, entry in row.items() if "median" in entry}
    own = medians.pop("trajmatch", None)
    return {} if own is None else {name: seconds / own for name, seconds in medians.items()}


def summary(entry: dict[str, Any]) -> str:
    """Format an entry of the table."""
    if "error" in entry:
        return str(entry["error"])
    memory = "" if entry["peak_bytes"] is None else f", {entry['peak_bytes'] / 2**30:.2f} GiB"
    return f"{1000 * entry['median']:.2f} ms{memory}"
