"""Steps of expert training beside the eager loop.

python benchmarks/bench_expert.py --out record.json
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import product

from bench.expert import KINDS, measure_expert
from bench.program import Row, parser, program, report

from trajmatch.protocol import MTT_DSA


@program
def main(argv: Sequence[str] | None) -> int:
    """Measure all kinds of steps; the status is 1 if parameters differ."""
    given = parser(__doc__).parse_args(argv)

    def rows() -> Iterator[Row]:
        for width, threads, kind, dsa in product((32, 128), (1, 2), KINDS, ("none", MTT_DSA)):
            chosen = {"dsa": dsa, "kind": kind, "device": given.device}
            if given.quick:
                yield measure_expert(4, 6, 2, rounds=1, threads=1, image_size=8, depth=1, **chosen)
            else:  # eager PyTorch takes seconds for a step at width 128
                steps = 8 if width < 128 else 3
                yield measure_expert(width, 256, steps, threads=threads, **chosen)

    return report(rows(), given)


if __name__ == "__main__":
    sys.exit(main())
