"""Peak memory of each variant of the outer iteration, every measurement in a process of its own.

    python benchmarks/bench_memory.py --out record.json

Ours is measured after 10 steps and after 80. The unrolled graph is measured after few steps and
put on the line through them, since 80 steps of it may not fit.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from bench import facts
from bench.memory import memory_of
from bench.program import parser, program
from bench.sizes import TINY, Size
from bench.tables import memory_lines

from trajmatch import files

SIZES = [Size(32, 50, 80), Size(128, 50, 80)]
STEPS = {
    "trajmatch": (10, 80),
    "trajmatch_tape": (10, 80),
    "eager_unroll_nchw": (1, 2, 4),
    "func_adjoint": (2, 8),
    "compiled_adjoint": (2, 8),
}


@program
def main(argv: Sequence[str] | None) -> int:
    """Measure both sizes."""
    given = parser(__doc__).parse_args(argv)
    if given.quick:
        found = [memory_of(TINY, {"trajmatch": (1, 2)}, 80, given.device)]
    else:
        found = [memory_of(size, STEPS, size.steps, given.device) for size in SIZES]
    for each in found:
        print(*memory_lines(each), sep="\n")
    if given.out is not None:
        about = {"machine": facts.machine(given.device), "origin": facts.origin()}
        files.write_json(given.out, {**about, "rows": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
