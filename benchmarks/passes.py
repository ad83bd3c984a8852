"""Where an outer iteration of the CPU engine spends its time, pass by pass, beside the floor.

    python benchmarks/passes.py --size 128,50,6

The floor of a product is its multiplications at the rate of the machine's best matrix product or
convolution; other passes have none but memory's. Milliseconds are of one step on the first thread,
forward (``gradient``) and in the adjoint (``gradient_jvp``).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bench import facts
from bench.problem import make_problem
from bench.rates import machine_rates
from bench.sizes import Size, parse_size
from rich import box
from rich.console import Console
from rich.table import Table

from trajmatch import files
from trajmatch._extension import _C
from trajmatch.cli.arguments import parse
from trajmatch.memory import keep_freed_memory
from trajmatch.networks import ConvNet
from trajmatch.ops import param_distance, unroll

WARM_UP = 2


@dataclass(frozen=True, kw_only=True)
class PassesConfig:
    """Measure the passes of the CPU engine."""

    size: str = "128,50,6"
    """Outer iteration: width,batch,N."""
    tape_bytes: int = 2**31
    """Memory that activations may be kept in."""
    iterations: int = 10
    """Outer iterations to add up."""
    out: Path | None = None
    """JSON file for the record."""


def product_flops(network: ConvNet, tape: bool) -> dict[str, tuple[int, int]]:
    """Operations of the products of one image in one step, (forward, adjoint), by pass and layer.

    Winograd F(2x2) multiplies 16 values for each 2x2 outputs and pair of channels, F(4x4) 36 for
    each 4x4; a multiply-add counts as two operations.
    """
    counts: dict[str, tuple[int, int]] = {}
    channels, size = network.in_channels, network.image_size
    for layer in range(network.depth):
        pair = 2 * channels * network.width
        small = 16 * (-(-size // 2)) ** 2 * pair
        large = 36 * (-(-size // 4)) ** 2 * pair
        first = layer == 0
        kept = tape and not first
        terms = 1 if first else 2  # the images do not move, deeper inputs do
        counts[f"product.{layer}"] = (small, terms * large + (0 if kept else small))
        counts[f"weight product.{layer}"] = (large, terms * large)
        back = 2 * large if first or kept else 3 * large
        counts[f"input product.{layer}"] = (0 if first else large, back)
        channels, size = network.width, size // 2
    return counts


def measure(size: Size, tape_bytes: int, iterations: int) -> dict[str, Any]:
    """Milliseconds of each pass in one step, forward and in the adjoint, with the floors."""
    problem = make_problem(size)
    images, lr = problem.images.requires_grad_(), problem.lr.requires_grad_()
    totals: list[dict[str, float]] = [{}, {}]

    def add(to: dict[str, float]) -> None:
        for name, seconds in _C.stop_profile():
            to[name] = to.get(name, 0.0) + seconds

    for iteration in range(WARM_UP + iterations):
        if iteration == WARM_UP:
            totals = [{}, {}]
        _C.start_profile()
        end = unroll(
            problem.model,
            problem.start,
            images,
            problem.labels,
            lr,
            problem.batches,
            tape_bytes=tape_bytes,
        )
        add(totals[0])
        loss = param_distance(end, problem.target, problem.start)
        _C.start_profile()
        torch.autograd.grad(loss, (images, lr))
        add(totals[1])
    rate = machine_rates()["product_gflops"] * 1e9
    floors = product_flops(problem.model, tape_bytes > 0)
    scale = 1e3 / iterations / size.steps
    return {
        "product_gflops": rate / 1e9,
        "passes": {
            name: {
                "forward_ms": totals[0].get(name, 0.0) * scale,
                "adjoint_ms": totals[1].get(name, 0.0) * scale,
                "floor_ms": [1e3 * size.batch * flops / rate for flops in floors[name]]
                if name in floors
                else None,
            }
            for name in sorted(totals[0] | totals[1], key=lambda each: each.split(".")[::-1])
        },
    }


def main() -> int:
    """Runs the program; returns its exit status."""
    config = parse(PassesConfig, sys.argv[1:], "benchmarks/passes.py")
    keep_freed_memory()
    record = measure(parse_size(config.size), config.tape_bytes, config.iterations)
    table = Table("pass.layer", box=box.SIMPLE_HEAD)
    for column in ("forward", "floor", "adjoint", "floor"):
        table.add_column(column, justify="right")
    for name, found in record["passes"].items():
        forward, adjoint = (f"{each:.2f}" if each else "" for each in found["floor_ms"] or (0, 0))
        table.add_row(
            name, f"{found['forward_ms']:.2f}", forward, f"{found['adjoint_ms']:.2f}", adjoint
        )
    sums = [sum(p[key] for p in record["passes"].values()) for key in ("forward_ms", "adjoint_ms")]
    table.add_row("sum", f"{sums[0]:.2f}", "", f"{sums[1]:.2f}", "")
    Console(width=80).print(table)
    if config.out is not None:
        record |= {"size": config.size, "machine": facts.machine("cpu"), "origin": facts.origin()}
        files.write_json(config.out, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
