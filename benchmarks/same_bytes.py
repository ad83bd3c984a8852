"""Compare the results of two builds bit by bit: experts, distilled sets and scores of small runs.

    python benchmarks/same_bytes.py OLD NEW
    python benchmarks/same_bytes.py OLD . --cases mtt datm

OLD and NEW are commits, which are built in temporary folders, or folders of built checkouts. Both
make the runs of small_runs.py at the same time, on one thread each. Prints a table of fingerprints;
the exit status is 1 if any differ.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from builds import HERE, built, start
from small_runs import CASES, Digests


def main(argv: Sequence[str] | None = None) -> int:
    """Make the runs with both builds; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=[*CASES], metavar="CASE")
    arguments = parser.parse_args(argv)
    program = str(HERE / "benchmarks" / "small_runs.py")
    with built(arguments.old) as old, built(arguments.new) as new:
        processes = [
            start(each, program, str(each), *arguments.cases, OMP_NUM_THREADS="1")
            for each in (old, new)
        ]
        outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        return 2
    before, after = map(json.loads, outputs)
    print(table(before, after))
    different = [case for case in after if before[case] != after[case]]
    print(f"\n{len(after)} runs, different: {', '.join(different) or 'none'}")
    return 1 if different else 0


def table(before: dict[str, Digests], after: dict[str, Digests]) -> str:
    """Return the digests in Markdown, both where they differ."""
    parts = list(dict.fromkeys(part for found in after.values() for part in found))
    rows = [["case", *parts], ["---"] * (1 + len(parts))]
    for case in after:
        old, new = ([found[case].get(part, "") for part in parts] for found in (before, after))
        cells = (a if a == b else f"**{a} / {b}**" for a, b in zip(old, new, strict=True))
        rows.append([case, *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    sys.exit(main())
