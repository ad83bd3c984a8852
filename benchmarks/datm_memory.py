"""Memory and time of outer iterations with DATM's settings for CIFAR-100 at 10 images per class.

    python benchmarks/datm_memory.py --outer-iterations 2

1,000 synthetic images with logit labels, all of them in each of N = 80 student steps, ConvNet of
width 128, 100 classes, differentiable augmentation. Images and expert are random: memory does not
depend on what they hold. Images, labels and step size are updated after each iteration. Prints
JSON; the status is 1 if the peak exceeds the limit.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import bench  # noqa: F401  before torch, which reads its settings of OpenMP
import torch
from bench import facts
from bench.problem import make_problem
from bench.program import parser, program
from bench.sizes import TINY, Size
from bench.timing import seconds

from trajmatch import files, ops
from trajmatch.data.dsa import DSA
from trajmatch.device import peak_bytes
from trajmatch.protocol import MTT_DSA

SIZE = Size(128, 1000, 80, num_classes=100)


@program
def main(argv: Sequence[str] | None) -> int:
    """Run the iterations and print the record."""
    arguments = parser(__doc__)
    arguments.add_argument("--outer-iterations", type=int, default=2)
    arguments.add_argument("--tape-bytes", type=int, default=0, help="memory for activations")
    arguments.add_argument("--limit-gb", type=float, default=12.0, help="in 10^9 bytes")
    given = arguments.parse_args(argv)
    problem = make_problem(TINY if given.quick else SIZE, given.device)
    images, lr = problem.images.requires_grad_(), problem.lr.requires_grad_()
    logits = torch.randn(len(images), problem.size.num_classes, device=given.device)
    logits.requires_grad_()
    optimiser = torch.optim.SGD([images, logits, lr], lr=1e-3)
    losses = []

    def outer_iteration() -> None:
        end = ops.unroll(
            problem.model,
            problem.start,
            images,
            logits,
            lr,
            problem.batches,
            augment=DSA(MTT_DSA).replay(seed=len(losses)),
            tape_bytes=given.tape_bytes,
        )
        loss = ops.param_distance(end, problem.target, problem.start)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))

    taken = [seconds(outer_iteration, given.device) for _ in range(given.outer_iterations)]
    peak = peak_bytes(given.device)
    record = {
        "size": problem.size.key,
        "tape_bytes": given.tape_bytes,
        "machine": facts.machine(given.device),
        "origin": facts.origin(),
        "losses": losses,
        "seconds": taken,
        "peak_bytes": peak,
        "within_limit": peak <= given.limit_gb * 1e9,
    }
    print(json.dumps(record, indent=2))
    if given.out is not None:
        files.write_json(given.out, record)
    return 0 if record["within_limit"] else 1


if __name__ == "__main__":
    sys.exit(main())
