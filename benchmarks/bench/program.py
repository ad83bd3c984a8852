"""The frame of the programs of this folder."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import facts
from bench.timing import alternate, summary
from trajmatch import files
from trajmatch.errors import UserError
from trajmatch.memory import keep_freed_memory

Row = dict[str, Any]


def program(main: Callable[..., int]) -> Callable[..., int]:
    """Let a main function run as the program trajmatch does: same allocator, errors as messages."""

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None, *more: object) -> int:
        keep_freed_memory()
        try:
            return main(argv, *more)
        except UserError as error:
            print(f"error: {error.in_flags}", file=sys.stderr)
            return 2

    return run


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with the arguments of all programs whose result is a record of rows."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--quick", action="store_true", help="smallest sizes, to try the program")
    parser.add_argument("--out", type=Path, help="file for the record")
    return parser


def compared(
    case: str,
    variants: Mapping[str, Callable[[], Any]],
    rounds: int,
    device: str = "cpu",
    repeats: int = 1,
    **facts: Any,
) -> Row:
    """Time variants of a case in alternating rounds.

    Args:
        case: Its name.
        variants: Functions by name; the others are compared with the first.
        rounds: Timed rounds of each.
        device: Where they work.
        repeats: Calls that the times are divided by.
        facts: More entries of the row.

    Returns:
        ``case``, ``seconds`` of each variant, ``ratios`` of the others over the first, and the
        facts; ``agree``, if it is among them, is false where results differ.
    """
    taken = alternate(variants, rounds, device)
    parts = {name: [each / repeats for each in found] for name, found in taken.items()}
    return as_row(case, parts, **facts)


def as_row(case: str, taken: Mapping[str, Sequence[float]], **facts: Any) -> Row:
    """Return the row of :func:`compared` from the seconds of every variant's rounds."""
    seconds = {name: summary(found) for name, found in taken.items()}
    first, *others = taken
    return {
        "case": case,
        "seconds": seconds,
        "ratios": {name: seconds[name]["median"] / seconds[first]["median"] for name in others},
        **facts,
    }


def report(rows: Iterable[Row], given: argparse.Namespace) -> int:
    """Print rows as they come and write the record; the status is 1 if results differ."""
    done = []
    for row in rows:
        done.append(row)
        print(line(row), flush=True)
    if given.out is not None:
        about = {"machine": facts.machine(given.device), "origin": facts.origin()}
        files.write_json(given.out, {**about, "rows": done})
    return 0 if all(row.get("agree", True) for row in done) else 1


def line(row: Row) -> str:
    """Format a row for a reader."""
    times = (
        f"{name} {1000 * each['median']:.4g} ms"
        + (f" ({row['ratios'][name]:.2f}x)" if name in row["ratios"] else "")
        for name, each in row["seconds"].items()
    )
    mark = "" if row.get("agree", True) else f" DISAGREE: {row.get('differences')}"
    return f"{row['case']}: {', '.join(times)}{mark}"
