"""From raw data to accuracy within a budget of time, on one device and without a network.

    python benchmarks/reproduce.py mtt/cifar10/ipc10 --data cifar10:ROOT --out runs/ipc10
    python benchmarks/reproduce.py mtt/cifar10/ipc10 --data cifar10:ROOT --out runs/ipc10 \
        --budget 25m --slice 9m      # as often as it ends with status 75
    python benchmarks/reproduce.py benchmarks/reproduction/smoke.toml --device cpu --out runs/smoke

Takes any recipe that ``trajmatch run`` takes. Trains as many experts and runs as many outer
iterations as fit into the budget, up to what the recipe says, and evaluates the distilled and
random real images by its protocol. All that it did, with times, counts, departures and accuracies
beside the published ones, is in ``result.json``. With ``--slice`` a run ends in time with its state
on disk, and the same command goes on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # also where Python is told not to look beside its program

from reproduction.baselines import Published  # noqa: E402
from reproduction.clock import Clock, SliceOver, duration  # noqa: E402
from reproduction.run import reproduce  # noqa: E402

from trajmatch import files  # noqa: E402
from trajmatch.errors import UserError  # noqa: E402
from trajmatch.memory import keep_freed_memory  # noqa: E402
from trajmatch.recipes import find_recipe  # noqa: E402

#: Exit status of a run that ended with its slice: come again (EX_TEMPFAIL of sysexits.h).
COME_AGAIN = 75


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a recipe; the status is 0, 2 for a mistake of the user, or :data:`COME_AGAIN`."""
    arguments = parse(argv)
    keep_freed_memory()
    try:
        recipe = find_recipe(arguments.recipe)
        slice_seconds = None if arguments.slice is None else duration(arguments.slice)
        budget = duration(arguments.budget)
        files.check_writable(arguments.out)
        clock = Clock(arguments.out / "state.json", budget, slice_seconds)
        result = reproduce(
            recipe,
            arguments.out,
            clock,
            arguments.data,
            arguments.device,
            arguments.seed,
        )
    except SliceOver:
        print(f"{clock.spent:.0f} of {budget:.0f} s are spent; the same command goes on")
        return COME_AGAIN
    except UserError as error:
        print(f"reproduce: error: {error.args[0]}", file=sys.stderr)
        return 2
    print(as_text(result))
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "recipe",
        metavar="RECIPE",
        help="such as mtt/cifar10/ipc10 (`trajmatch recipes` lists them), or a .toml file",
    )
    parser.add_argument("--budget", default="25m", help="time for everything, e.g. 25m")
    parser.add_argument("--slice", help="time for this run, e.g. 9m (default: no limit)")
    parser.add_argument("--data", help="data set, e.g. cifar10:ROOT (default: by TRAJMATCH_DATA)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder for all that is written")
    return parser.parse_args(argv)


def as_text(result: dict[str, Any]) -> str:
    """The result for a reader."""
    lines = []
    for title, name in (("random real", "random_real"), ("distilled", "distilled")):
        score, published = result[name], result["published"][name]
        told = "no published number" if published is None else f"published {Published(**published)}"
        lines.append(
            f"{title:12} {score['mean']:5.1f} +- {score['std']:.1f} % "
            f"({score['seeds']} networks); {told}"
        )
    lines += [f"note: {note}" for note in result["notes"]]
    lines += [f"but: {departure}" for departure in result["departures"]]
    lines.append(f"{result['seconds']['all']:.0f} s in {result['slices']} runs")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
