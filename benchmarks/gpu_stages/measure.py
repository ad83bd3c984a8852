"""Times and memory of a function on a device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


def measure(
    function: Callable[[], Any],
    device: str,
    rounds: int,
    warmup: int = 2,
    longest: float = 20.0,
    blocking: bool = False,
) -> dict[str, Any]:
    """Runs a function a few times; on a GPU between two events, to its end.

    Args:
        function: What to time. It leaves what it returns to be freed.
        device: ``"cuda"`` or ``"cpu"``.
        rounds: Timed calls; at least one.
        warmup: Calls before them.
        longest: No further timed call begins after so many seconds of them.
        blocking: Whether the function returns only when its result is there, from another library
            than PyTorch: the host's clock times it, because events do not see another stream.

    Returns:
        ``seconds`` of every timed call, their ``median``, and ``peak_bytes``, the most device
        memory that was allocated in any call above what was held before; None on the CPU and for
        another library, where nobody counts.
    """
    cuda = device == "cuda" and not blocking
    held = 0
    if cuda:
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    for _ in range(warmup):  # what is recorded here allocates no more when it is replayed
        function()
    seconds: list[float] = []
    if cuda:
        torch.cuda.synchronize()
    while len(seconds) < rounds and sum(seconds) < longest:
        seconds.append(_on_gpu(function) if cuda else _by_the_host(function))
    return {
        "seconds": seconds,
        "median": statistics.median(seconds),
        "peak_bytes": torch.cuda.max_memory_allocated() - held if cuda else None,
    }


def _by_the_host(function: Callable[[], Any]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def _on_gpu(function: Callable[[], Any]) -> float:
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    function()
    ended.record()
    torch.cuda.synchronize()
    return float(began.elapsed_time(ended)) / 1000
