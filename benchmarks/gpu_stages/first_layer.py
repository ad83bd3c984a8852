"""The kernels of the first layer alone, as one student step launches them."""

from __future__ import annotations

import torch

from gpu_stages.settings import NotRun, Record, Settings
from gpu_stages.step_profile import kernels
from trajmatch import networks, ops, random

#: Width and batches; the network has that one block.
WIDTH, BATCHES = 128, (100, 10)
#: Calls; a time is their mean.
CALLS = 20
#: Part of the kernels' names, and the number of passes.
NAME, PASSES = "first_layer", 4


def run(settings: Settings, record: Record) -> None:
    """Time all passes; one whose kernel does not run is a fault."""
    if settings.device != "cuda":
        raise NotRun("the first layer has kernels of its own on CUDA alone")
    for batch in (2,) if settings.quick else BATCHES:
        rows = [row for row in times(settings.device, batch) if NAME in row["name"]]
        record.put(f"width {WIDTH}, batch {batch}", rows)
        for row in rows:
            print(f"batch {batch}: {row['microseconds'] / row['count']:8.1f} us {row['name']}")
        if len(rows) < PASSES:
            record.fault(f"batch {batch}: only {len(rows)} of the first layer's kernels ran")


def times(device: str, batch: int) -> list[dict[str, object]]:
    """Kernels of the gradient and of its derivative, per call."""
    draw = random.generator(0, "gpu_check", "first_layer")
    model = networks.initialise(networks.ConvNet(3, 10, 32, width=WIDTH, depth=1), draw).to(device)
    theta = networks.flat_parameters(model).detach()
    images = torch.randn(batch, 3, 32, 32, generator=draw).to(device)
    labels = (torch.arange(batch) % 10).to(device)

    def calls() -> None:
        for _ in range(CALLS):
            ops.gradient(model, theta, images, labels)
            ops.gradient_jvp(model, theta, images, labels, tangent=theta)

    return kernels(calls, device, CALLS)
