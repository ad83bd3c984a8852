"""The kernels of the first layer alone, as one student step launches them, beside the library's."""

from __future__ import annotations

from typing import Any

import torch

from gpu_stages.settings import NotRun, Record, Settings
from gpu_stages.step_profile import kernels
from trajmatch import networks, ops, random
from trajmatch.block import CudaBlocks

#: Width, and batch and image size of each case; the network has that one block.
WIDTH, CASES = 128, ((100, 32), (10, 32), (10, 128))
#: Calls; a time is their mean.
CALLS = 20
BLOCKS: tuple[CudaBlocks, ...] = ("library", "first")
#: Part of the kernels' names.
NAME = "first_layer"


def run(settings: Settings, record: Record) -> None:
    """Time all passes; one whose kernel does not run is a fault."""
    if settings.device != "cuda":
        raise NotRun("the first layer has kernels of its own on CUDA alone")
    for batch, size in ((2, 32), (1, 64)) if settings.quick else CASES:
        case = f"batch {batch}, {size} pixels"
        # Four passes. With several squares, each has two kernels; one more adds up the gradient.
        expected = 4 if size == 32 else 9
        found = {blocks: times(settings.device, batch, size, blocks) for blocks in BLOCKS}
        rows = [row for row in found["first"] if NAME in row["name"]]
        totals = {
            blocks: sum(row["microseconds"] for row in each) for blocks, each in found.items()
        }
        record.put(f"width {WIDTH}, {case}", {"microseconds_of_all": totals, "kernels": rows})
        for blocks, total in totals.items():
            print(f"{case}: {total:8.1f} us all kernels, {blocks}")
        for row in rows:
            print(f"{case}: {row['microseconds'] / row['count']:8.1f} us {row['name']}")
        if len(rows) < expected:
            record.fault(f"{case}: only {len(rows)} of {expected} kernels of the first layer ran")


def times(device: str, batch: int, size: int, blocks: CudaBlocks) -> list[dict[str, Any]]:
    """Kernels of the gradient and of its derivative, per call."""
    draw = random.generator(0, "gpu_check", "first_layer")
    model = networks.ConvNet(3, 10, size, width=WIDTH, depth=1)
    model = networks.initialise(model, draw).to(device)
    theta = networks.flat_parameters(model).detach()
    images = torch.randn(batch, 3, size, size, generator=draw).to(device)
    labels = (torch.arange(batch) % 10).to(device)

    def calls() -> None:
        for _ in range(CALLS):
            ops.gradient(model, theta, images, labels)
            ops.gradient_jvp(model, theta, images, labels, tangent=theta)

    with ops.cuda_blocks(blocks):
        return kernels(calls, device, CALLS)
