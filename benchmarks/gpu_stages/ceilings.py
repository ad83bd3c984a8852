"""The rates of the device that other times are held against."""

from __future__ import annotations

from typing import Any

import torch
from bench.rates import machine_rates

from gpu_stages.measure import measure
from gpu_stages.settings import Record, Settings

#: Launches of the graph of empty kernels: an outer iteration of 80 steps with 18 launches each.
LAUNCHES = 1440


def run(settings: Settings, record: Record) -> None:
    """Record products, copies, our operators of vectors, and launches."""
    device = settings.device
    if settings.quick:
        record.put("rates", machine_rates(device, (64,), (4, 2), 2**10))
    else:
        record.put("rates", machine_rates(device, (4096,), (128, 1000), 2**28))
    if device == "cuda":
        record.put("launch", launch_seconds())


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
    return {
        "launches": LAUNCHES,
        "in_a_graph": measure(graph.replay, "cuda", rounds=10)["median"] / LAUNCHES,
        "one_by_one": measure(launches, "cuda", rounds=5)["median"] / LAUNCHES,
    }
