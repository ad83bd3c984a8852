"""Kernels of one student step with its adjoint: name, launches and time, DSA and tape on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from bench.problem import Problem, make_problem
from bench.sizes import Size
from torch.profiler import DeviceType, ProfilerActivity, profile

from gpu_stages.settings import Record, Settings
from trajmatch import ops
from trajmatch.data import DSA
from trajmatch.protocol import MTT_DSA

#: Enough steps for what happens once in an iteration to be little of each.
SIZES = [Size(128, 100, 10), Size(128, 10, 10)]
SMALLEST = [Size(4, 3, 2, depth=2, image_size=8)]
TAPE_BYTES = 16 * 2**30


def run(settings: Settings, record: Record) -> None:
    """Profile all sizes, the longest kernels first; a size without kernels is a fault."""
    for size in SMALLEST if settings.quick else SIZES:
        rows = kernels(outer(make_problem(size, settings.device)), settings.device, size.steps)
        name = f"width {size.width}, batch {size.batch}"
        record.put(
            name,
            {
                "microseconds_of_kernels": sum(row["microseconds"] for row in rows),
                "launches": sum(row["count"] for row in rows),
                "kernels": rows,
            },
        )
        if not rows:
            record.fault(f"{name}: the profiler saw no kernel")
        for row in rows[:30]:
            print(f"{name}: {row['microseconds']:8.1f} us {row['count']:5.1f} x {row['name']}")


def outer(problem: Problem) -> Callable[[], Any]:
    """An outer iteration with DSA, its activations kept."""
    images, lr = problem.images.detach().requires_grad_(), problem.lr.detach().requires_grad_()
    augment = DSA(MTT_DSA).replay(0)

    def iteration() -> Any:
        end = ops.unroll(
            problem.model,
            problem.start,
            images,
            problem.labels,
            lr,
            problem.batches,
            augment=augment,
            tape_bytes=TAPE_BYTES,
        )
        value = ops.param_distance(end, problem.target, problem.start)
        return torch.autograd.grad(value, (images, lr))

    return iteration


def kernels(function: Callable[[], Any], device: str, parts: int) -> list[dict[str, Any]]:
    """List the kernels that a function launches, the longest first.

    Args:
        function: What to profile; it is called once before.
        device: ``"cuda"``, or ``"cpu"``, where operators stand for kernels.
        parts: Divisor of counts and times, e.g. the number of steps.

    Returns:
        ``name``, ``count`` and ``microseconds`` of each kernel.
    """
    cuda = device == "cuda"
    function()
    activity = ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        function()
        if cuda:
            torch.cuda.synchronize()
    wanted = DeviceType.CUDA if cuda else DeviceType.CPU
    rows = [
        {
            "name": event.key,
            "count": event.count / parts,
            "microseconds": (event.self_device_time_total if cuda else event.self_cpu_time_total)
            / parts,
        }
        for event in profiler.key_averages()
        if event.device_type == wanted
    ]
    return sorted(rows, key=lambda row: -row["microseconds"])
