"""Each fused operator with its derivatives, beside eager and compiled PyTorch.

    python benchmarks/bench_ops.py --out record.json

The three compute the same and are timed in alternating rounds. The compiled one is the reference's
formula with its derivatives by ``torch.func``, since a second derivative through autograd does not
compile.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

import bench  # noqa: F401  before torch, which reads its settings of OpenMP
import torch
from bench.agreement import relative
from bench.operators import Call, Case, cases
from bench.program import Row, compared, parser, program, report
from bench.timing import seconds
from bench.variants import quiet

from trajmatch import ops, reference

#: Calls are repeated until a round takes this long.
ROUND_SECONDS = 0.01
ROUNDS = 20
#: Largest relative difference of a result; an input of a ReLU may fall on the other side of zero.
TOLERANCE = 1e-2
#: Width, depth, image size and batch of the network.
NETWORK, SMALLEST = (32, 3, 32, 50), (4, 1, 8, 2)


def measured(case: Case, device: str, tiny: bool) -> Row:
    """Compare the implementations of a case and time them."""
    torch.compiler.reset()
    calls: dict[str, Call] = {
        "trajmatch": case.on(ops, device, torch.float32),
        "eager": case.on(reference, device, torch.float32),
    }
    if not case.name.startswith(("dsa", "unroll")):  # these branch on values, or loop
        calls["compiled"] = case.compiled(device, "eager" if tiny else "inductor")
    with quiet():
        results = {name: call() for name, call in calls.items()}
    last = min(map(len, results.values()))  # the compiled one gives no others
    # all as one vector: some second derivatives are zero
    vectors = {
        name: torch.cat([each.flatten() for each in found[-last:]])
        for name, found in results.items()
    }
    differences = {name: relative(found, vectors["eager"]) for name, found in vectors.items()}
    once = min(seconds(call, device) for call in calls.values())
    repeats = 1 if tiny else max(1, round(ROUND_SECONDS / once))

    def repeated(call: Call) -> None:
        for _ in range(repeats):
            call()

    return compared(
        case.name,
        {name: partial(repeated, call) for name, call in calls.items()},
        1 if tiny else ROUNDS,
        device,
        repeats,
        differences=differences,
        agree=max(differences.values()) <= TOLERANCE,
    )


@program
def main(argv: Sequence[str] | None) -> int:
    """Measure all operators; the status is 1 if implementations differ."""
    given = parser(__doc__).parse_args(argv)
    found = cases(given.quick, [SMALLEST if given.quick else NETWORK])
    return report((measured(case, given.device, given.quick) for case in found), given)


if __name__ == "__main__":
    sys.exit(main())
