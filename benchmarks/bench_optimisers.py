"""The unrolled loop and its adjoint with each optimiser of the student, beside the unrolled graph.

    python benchmarks/bench_optimisers.py --out record.json

Times are of an outer iteration, all variants of a size in the same alternating rounds; ratios are
over plain SGD for ours, and for the graph of eager PyTorch over ours with the same optimiser; Adam
also in higher and torchopt, if they are installed. Memory is the slope of the peak over the steps,
in parameter vectors.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import partial

import bench  # noqa: F401  before torch, which reads its settings of OpenMP
from bench.agreement import relative
from bench.memory import memory_over_steps
from bench.optimisers import GRAPHS, OURS, WITH_OPTIMISER
from bench.peers import installed
from bench.problem import make_problem
from bench.program import Row, as_row, parser, program, report
from bench.sizes import TINY, Size
from bench.timing import alternate

SIZES = [Size(32, 10, 20), Size(32, 50, 10), Size(128, 50, 6)]
#: Steps between which memory grows by what each step keeps.
STEPS = (20, 120)
ROUNDS = 9
#: Largest relative difference of the gradients from the graph's in float64. From moments that are
#: zero, Adam divides the rounding of gradients that should be zero by eps = 1e-8, in the graph too.
TOLERANCE = 1e-7


def rows(sizes: Sequence[Size], steps: Sequence[int], rounds: int, device: str) -> Iterator[Row]:
    """Yield times and memory of every optimiser at every size."""
    for size in sizes:
        problem = make_problem(size, device)
        double = problem.double()
        differences = {
            name: max(map(relative, run(double), GRAPHS[name](double)))
            for name, run in OURS.items()
        }
        # each graph after ours with the same optimiser: what runs before it costs time, too
        sides = {"trajmatch": OURS, "graph": GRAPHS}
        runs = {(who, name): runs[name] for name in OURS for who, runs in sides.items()}
        runs |= {(peer, "adam"): run for peer, run in installed().items()}
        timed = {" ".join(key): partial(run, problem) for key, run in runs.items()}
        for run in timed.values():
            run()
        taken = alternate(timed, rounds, device)
        yield as_row(
            f"optimisers, {size.key}",
            {name: taken[f"trajmatch {name}"] for name in OURS},
            differences=differences,
            agree=max(differences.values()) < TOLERANCE,
        )
        for name in OURS:
            named = {who: taken[f"{who} {name}"] for who, of in runs if of == name}
            yield as_row(f"{name}, {size.key}", named)
    size = sizes[0]
    vector = make_problem(size).start.numel() * 4
    for name in ("trajmatch", *WITH_OPTIMISER):
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
