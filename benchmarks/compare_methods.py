"""MTT, FTD, AST and DATM beside random and chosen real images, under one protocol on CIFAR-10.

    python benchmarks/compare_methods.py --data cifar10:ROOT --out runs/comparison --budget 25m

as often as it ends with status 75: every call goes on where the last one stopped. The record is
written after every piece; when it is complete, docs/comparison.md gets its tables.

Seconds on two cores, by ``comparison.methods.CIFAR10`` (ConvNet of width 32 and depth 3; all
50,000 training images; four methods and two baselines, 3 seeds each):

    experts         10 experts x 10 epochs, two at a time; an epoch takes one thread 6.5 s with
                    plain SGD, 12 s with GSAM, 30 s with the penalty
                    10 x 10 x (6.5 s + 12 s + 30 s) / 2                                  2425
    distillation    4 methods x 3 seeds x 2000 outer iterations, in seconds each:
                    0.08 for 1 image per class (40 student steps of 10 images)           1920
                    0.20 for 10 (20 student steps of 50 images)                          4800
    networks        6 methods x 3 seeds x 3 networks x 1000 epochs and 10,000 test images, each:
                    5 s for 1 image per class, 20 s for 10                               1350
    reading, first images, labels: 36 runs x 10 s                                         360
                                                                                  in all 10855

which is 3.0 of the 4 hours that it may take.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # also where Python is told not to look beside its program

from comparison.methods import CIFAR10, Scale  # noqa: E402
from reproduction.clock import SliceOver, duration  # noqa: E402

from trajmatch.cli.arguments import parse  # noqa: E402
from trajmatch.cli.main import SPIN_COUNT  # noqa: E402
from trajmatch.errors import UserError  # noqa: E402

#: Exit status of a call that ended with its budget: come again (EX_TEMPFAIL of sysexits.h).
COME_AGAIN = 75


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Compare the methods, or go on with it, and fill in the page of the docs when all is done."""

    out: Path
    """Folder for experts and distilled images."""
    data: str | None = None
    """Data set, e.g. cifar10:ROOT. Default: cifar10 under a folder in TRAJMATCH_DATA."""
    budget: str | None = None
    """Time for this call, e.g. 90s, 25m or 1.5h. Default: no limit."""
    device: str = "cpu"
    """Where to compute: cpu, cuda or cuda:N."""
    record: Path = HERE / "results" / "comparison.json"
    """The record of all that was measured."""
    page: Path = HERE.parent / "docs" / "comparison.md"
    """Markdown page whose result is filled in when the record is complete."""


def main(argv: Sequence[str] | None = None, scale: Scale = CIFAR10) -> int:
    """Runs the program.

    Args:
        argv: The arguments; None: those of the process.
        scale: What is the same for all methods.

    Returns:
        The exit status: 0, 2 for a mistake of the user, or :data:`COME_AGAIN`.
    """
    arguments = sys.argv[1:] if argv is None else argv
    config = parse(CompareConfig, arguments, "benchmarks/compare_methods.py")
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)  # as in the program trajmatch

    import doc_pages
    from comparison import page
    from comparison.run import compare
    from reproduction.clock import Clock

    from trajmatch import files
    from trajmatch.data import resolve_uri
    from trajmatch.memory import keep_freed_memory

    keep_freed_memory()
    try:
        budget = None if config.budget is None else duration(config.budget)
        uri = config.data or resolve_uri("cifar10")
        if uri is None:
            raise UserError(
                "the data set 'cifar10' is not found under the folders in TRAJMATCH_DATA; say "
                "where it is with --data"
            )
        for folder in (config.out, config.record.parent):
            files.check_writable(folder)
        clock = Clock(config.record, float("inf"), budget)
        record = compare(scale, uri, config.out, clock, config.device)
        doc_pages.fill(config.page, "result", page.result(record))
    except SliceOver:
        print(f"{clock.spent:.0f} s are spent in all; the same command goes on")
        return COME_AGAIN
    except UserError as error:
        print(f"compare_methods: error: {error.args[0]}", file=sys.stderr)
        return 2
    print(page.result(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
