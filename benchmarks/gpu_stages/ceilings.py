"""What the device reaches at best: the rates that other times are held against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gpu_stages.measure import measure
from gpu_stages.settings import Record, Settings

#: Launches of the graph of empty kernels: an outer iteration of 80 steps with 18 launches each.
LAUNCHES = 1440


def run(settings: Settings, record: Record) -> None:
    """Copy rate, rate of reading from the second-level cache, matrix products, launches."""
    device, quick = settings.device, settings.quick
    record.put("copy", copy_rate(device, 2**20 if quick else 2**31))
    record.put("cache_read", read_rate(device, 2**18 if quick else 30 * 2**20))
    size = 64 if quick else 4096
    record.put("product_float32", product_rate(device, size, torch.float32, tf32=False))
    if device == "cuda":
        record.put("product_tf32", product_rate(device, size, torch.float32, tf32=True))
        record.put("product_fp16", product_rate(device, size, torch.float16, tf32=False))
        record.put("launch", launch_seconds())


def copy_rate(device: str, size: int) -> dict[str, Any]:
    """Bytes read and written in a second by a copy of ``size`` bytes."""
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = measure(lambda: target.copy_(source), device, rounds=10)
    return {"bytes": 2 * size, "bytes_per_second": 2 * size / times["median"], **times}


def read_rate(device: str, size: int) -> dict[str, Any]:
    """Bytes read in a second by the sum over a buffer that the cache holds."""
    buffer = torch.randn(size // 4, device=device)

    def several() -> None:
        for _ in range(16):
            buffer.sum()

    times = measure(several, device, rounds=10)
    return {"bytes": 16 * size, "bytes_per_second": 16 * size / times["median"], **times}


def product_rate(device: str, size: int, dtype: torch.dtype, tf32: bool) -> dict[str, Any]:
    """Floating-point operations in a second of a square matrix product of random numbers."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        times = measure(lambda: a @ b, device, rounds=10, warmup=3)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    operations = 2 * size**3
    return {"flop": operations, "flop_per_second": operations / times["median"], **times}


def launch_seconds() -> dict[str, Any]:
    """Seconds for each launch of the smallest kernel, within one graph and one by one."""
    value = torch.zeros(1, device="cuda")

    def launches() -> None:
        for _ in range(LAUNCHES):
            value.add_(1)

    graph = torch.cuda.CUDAGraph()
    launches()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        launches()
    replay: Callable[[], None] = graph.replay
    return {
        "launches": LAUNCHES,
        "in_a_graph": measure(replay, "cuda", rounds=10)["median"] / LAUNCHES,
        "one_by_one": measure(launches, "cuda", rounds=5)["median"] / LAUNCHES,
    }
