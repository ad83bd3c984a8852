"""The unrolled loop and its adjoint with each optimiser of the student, beside the unrolled graph.

    python benchmarks/bench_optimisers.py --out record.json

Times are of an outer iteration, in alternating rounds; ratios are over plain SGD for ours, and for
the graph of eager PyTorch over ours with the same optimiser; Adam also in higher and torchopt, if
they are installed. Memory is the slope of the peak over the steps, in parameter vectors.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import partial

import bench  # noqa: F401  before torch, which reads its settings of OpenMP
from bench.agreement import relative
from bench.memory import memory_over_steps
from bench.peers import installed
from bench.problem import make_problem
from bench.program import Row, compared, parser, program, report
from bench.sizes import TINY, Size
from bench.variants import OPTIMISERS, VARIANTS, WITH_OPTIMISER

SIZES = [Size(32, 10, 20), Size(32, 50, 10), Size(128, 50, 6)]
#: Steps between which memory grows by what each step keeps.
STEPS = (20, 120)
ROUNDS = 7
#: Largest relative difference of the gradients from float64's, in float32 over all steps.
TOLERANCE = 1e-2


def rows(sizes: Sequence[Size], steps: Sequence[int], rounds: int, device: str) -> Iterator[Row]:
    """Yield times and memory of every optimiser at every size."""
    for size in sizes:
        problem = make_problem(size, device)
        double, ours, graphs, exact = problem.double(), {}, {}, {}
        for name in OPTIMISERS:
            ours[name] = partial(WITH_OPTIMISER[f"trajmatch_{name}"], problem)
            graphs[name] = partial(WITH_OPTIMISER[f"eager_unroll_{name}"], problem)
            exact[name] = WITH_OPTIMISER[f"eager_unroll_{name}"](double)
        differences = {name: max(map(relative, run(), exact[name])) for name, run in ours.items()}
        variants = {"sgd": partial(VARIANTS["trajmatch"], problem), **ours}
        for run in (*variants.values(), *graphs.values()):
            run()
        yield compared(
            f"optimisers, {size.key}",
            variants,
            rounds,
            device,
            differences=differences,
            agree=max(differences.values()) < TOLERANCE,
        )
        plain = partial(VARIANTS["eager_unroll_nchw"], problem)
        yield compared(f"sgd, {size.key}", {"trajmatch": variants["sgd"], "graph": plain}, rounds)
        for name, run in ours.items():
            variants = {"trajmatch": run, "graph": graphs[name]}
            if name == "adam":
                peers = installed()
                variants |= {peer: partial(peers[peer], problem) for peer in peers}
            yield compared(f"{name}, {size.key}", variants, rounds, device)
    size = sizes[0]
    vector = make_problem(size).start.numel() * 4
    for name in ("trajmatch", *(f"trajmatch_{each}" for each in OPTIMISERS)):
        memory = memory_over_steps(size, name, device, steps)
        yield {
            "case": f"memory of {name}: {memory['slope'] / vector:.2f} parameter vectors a step",
            "seconds": {},
            "ratios": {},
            "vectors": memory["slope"] / vector,
            **memory,
        }


@program
def main(argv: Sequence[str] | None) -> int:
    """Measure all optimisers; the status is 1 if gradients are far from float64's."""
    given = parser(__doc__).parse_args(argv)
    if given.quick:
        return report(rows([TINY], (1, 3), 1, given.device), given)
    return report(rows(SIZES, STEPS, ROUNDS, given.device), given)


if __name__ == "__main__":
    sys.exit(main())
