"""Memory that really runs out: the error is recognised, and a leaner plan gives the result."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from bench.agreement import ALL_STEPS, agreement
from bench.problem import make_problem
from bench.sizes import Size
from bench.variants import trajmatch

from gpu_stages.settings import Record, Settings
from trajmatch import ops
from trajmatch.memory import is_out_of_memory
from trajmatch.out_of_memory import release

#: Sizes whose kept activations are far larger than all else.
SIZE = Size(128, 100, 80)
SMALLEST = Size(32, 36, 150, depth=2, image_size=8)


def run(settings: Settings, record: Record) -> None:
    """Keep activations in half of the memory that they need; then compute without them."""
    size, device = SMALLEST if settings.quick else SIZE, torch.device(settings.device)
    problem = make_problem(size, device)
    wanted = trajmatch(problem)
    needed = ops.tape_bytes(problem.model, [size.batch] * size.steps, device=device)
    record.put("tape_bytes", needed)
    release(device)
    with limited(device, needed // 2):
        try:
            trajmatch(problem, tape_bytes=2 * needed)
        except (MemoryError, RuntimeError) as error:
            text, recognised = f"{type(error).__name__}: {error}", is_out_of_memory(error)
        else:
            record.fault(f"{needed} bytes were had of {needed // 2}")
            return
        release(device)
        leaner = trajmatch(problem)
    record.put("error", text)
    print(text)
    if not recognised:
        record.fault(f"not recognised as out of memory: {text}")
    agreed = agreement({"enough": wanted, "leaner": leaner}, "enough", ALL_STEPS[device.type])
    if not agreed["agree"]:
        record.fault(f"the leaner plan is off by {agreed['differences']['leaner']}")


@contextmanager
def limited(device: torch.device, room: int) -> Iterator[None]:
    """Limit this process to ``room`` more bytes on the device, inside the block."""
    if device.type == "cuda":
        whole = torch.cuda.get_device_properties(device).total_memory
        share = (torch.cuda.memory_reserved(device) + room) / whole
        torch.cuda.set_per_process_memory_fraction(share, device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, device)
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
