"""Time two builds in turn: the demo, and outer iterations of docs/performance.md.

    python benchmarks/old_and_new.py OLD NEW

OLD and NEW are commits or folders of built checkouts, as for same_bytes.py. Prints the median
seconds of both and the ratio of OLD over NEW: above 1 the new build is faster.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median

from bench.problem import make_problem
from bench.program import program
from bench.sizes import HEADLINE, parse_size
from bench.timing import alternate
from bench.variants import TAPE_BYTES, VARIANTS
from builds import built, check_origin, start

import trajmatch

#: Sizes in docs/performance.md.
SIZES = [size.key for size in HEADLINE]

Timed = Callable[[], object]


@program
def main(argv: Sequence[str] | None) -> int:
    """Time both builds, or work for a parent that does."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--demos", type=int, default=3, help="rounds of the demo")
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="each width,batch,N")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of each outer iteration")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.child:
        return work(arguments.new, *arguments.child)
    with built(arguments.old) as old, built(arguments.new) as new:
        for size in arguments.sizes:
            for tape in (0, TAPE_BYTES):
                with (
                    iterating(old, size, tape) as before,
                    iterating(new, size, tape) as now,
                ):
                    title = f"width,batch,N {size}, {tape >> 20} MB of activations"
                    compare(title, before, now, arguments.rounds)
        if arguments.demos:
            compare("trajmatch demo", partial(demo, old), partial(demo, new), arguments.demos)
    return 0


def compare(title: str, old: Timed, new: Timed, rounds: int) -> None:
    """Time two functions in alternating rounds and print a line."""
    before, after = map(median, alternate({"old": old, "new": new}, rounds).values())
    print(f"{title}: {before:.4g} s, {after:.4g} s, ratio {before / after:.3f}", flush=True)


def demo(checkout: Path) -> None:
    """Run the demo, all of it."""
    with tempfile.TemporaryDirectory() as folder:
        process = start(checkout, "-m", "trajmatch", "demo", "--out", f"{folder}/demo", "--quiet")
        process.communicate()
        if process.returncode:
            raise SystemExit(f"the demo of {checkout} ended with status {process.returncode}")


@contextlib.contextmanager
def iterating(checkout: Path, size: str, tape_bytes: int) -> Iterator[Timed]:
    """Provide a function that makes an outer iteration in a process of a build, which is warm."""
    child = start(
        checkout, __file__, str(checkout), str(checkout), "--child", size, str(tape_bytes)
    )
    assert child.stdin is not None and child.stdout is not None

    def iterate() -> None:
        print(file=child.stdin, flush=True)
        if not child.stdout.readline():
            raise SystemExit(f"the process of {checkout} ended")

    with child:
        iterate()
        iterate()
        yield iterate


def work(checkout: str, size: str, tape_bytes: str) -> int:
    """Make an outer iteration for each line of the standard input."""
    check_origin(trajmatch, checkout)
    problem = make_problem(parse_size(size))
    for _ in sys.stdin:
        VARIANTS["trajmatch_tape"](problem, tape_bytes=int(tape_bytes))
        print(flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
