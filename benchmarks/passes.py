"""Where an outer iteration of the CPU engine spends its time, pass by pass, beside the floor.

    python benchmarks/passes.py --size 128,50,6

The floor of a product is its multiplications at the rate of the machine's best matrix product or
convolution; other passes have none but memory's. Milliseconds are of one step on the first thread,
forward (``gradient``) and in the adjoint (``gradient_jvp``).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import bench  # noqa: F401  before torch, which reads its settings of OpenMP
import torch
from bench import facts
from bench.problem import make_problem
from bench.program import parser, program
from bench.rates import machine_rates
from bench.sizes import HEADLINE, TINY, Size, parse_size
from doc_pages import table

from trajmatch import files
from trajmatch._extension import _C
from trajmatch.networks import ConvNet
from trajmatch.ops import param_distance, unroll

WARM_UP = 2


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


@program
def main(argv: Sequence[str] | None) -> int:
    """Print the passes and write the record."""
    arguments = parser(__doc__)
    arguments.add_argument("--size", type=parse_size, default=HEADLINE[-1], help="width,batch,N")
    arguments.add_argument("--tape-bytes", type=int, default=2**31, help="for activations")
    arguments.add_argument("--iterations", type=int, default=10, help="outer iterations to add up")
    given = arguments.parse_args(argv)
    size = TINY if given.quick else given.size
    record = measure(size, given.tape_bytes, given.iterations)
    rows = []
    for name, found in record["passes"].items():
        floors = [f"{each:.2f}" if each else "" for each in found["floor_ms"] or (0, 0)]
        times = [f"{found[key]:.2f}" for key in ("forward_ms", "adjoint_ms")]
        rows.append([name, times[0], floors[0], times[1], floors[1]])
    print(table(["pass.layer", "forward", "floor", "adjoint", "floor"], rows))
    if given.out is not None:
        record |= {"size": size.key, "machine": facts.machine("cpu"), "origin": facts.origin()}
        files.write_json(given.out, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
