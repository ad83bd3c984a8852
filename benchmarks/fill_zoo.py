"""Put a distilled set into the zoo with its test accuracy, or evaluate sets of the zoo again.

    python benchmarks/fill_zoo.py add FILE NAME --data URI --commit COMMIT --command COMMAND \\
        --experts TEXT
    python benchmarks/fill_zoo.py check [NAME ...]

``add`` trains ten networks on the set by the protocol of the MTT paper's code, adds the score to
the set, and writes its file and its entry in the index of ``trajmatch/zoo``, its picture, and the
table of docs/zoo.md.
``check`` trains ten other networks on sets of the zoo, and its status is 1 if a mean accuracy is
not within two standard errors of the one in the set. The data sets are then found by name in the
folders of ``TRAJMATCH_DATA``.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bench  # noqa: F401  before torch, which reads its settings of OpenMP
import msgspec
from doc_pages import fill, table

from trajmatch import files, pictures, zoo
from trajmatch.errors import UserError
from trajmatch.evaluate import EvalConfig, evaluate_artifact

#: Terms of the images, by the name of their data set.
LICENCES = {
    "cifar10": "CIFAR-10 (Krizhevsky, 2009) has no licence; its photographs are from the web",
    "fashion-mnist": "Fashion-MNIST (Zalando SE, 2017): MIT licence",
    "fashion-mnist-mini": "Fashion-MNIST (Zalando SE, 2017): MIT licence",
    "mnist": "MNIST (LeCun, Cortes and Burges, 1998): CC BY-SA 3.0",
}
#: Networks of a score.
NETWORKS = 10
PAGE = Path(__file__).resolve().parent.parent / "docs" / "zoo.md"
#: Images of each class in the pictures of the page.
SHOWN = 4


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program with its arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = parser.add_subparsers(dest="action", required=True)
    add_ = actions.add_parser("add", help="put a distilled set into the zoo")
    add_.add_argument("file", help="the distilled set")
    add_.add_argument("name", help="its name in the zoo")
    add_.add_argument("--data", help="the data set it was distilled from")
    for fact in ("commit", "command", "experts"):
        add_.add_argument(f"--{fact}", required=True, help=f"{fact} in the index")
    check_ = actions.add_parser("check", help="evaluate sets of the zoo again")
    check_.add_argument("names", nargs="*", help="sets of the zoo (all)")
    given = parser.parse_args(argv)
    try:
        if given.action == "add":
            facts = {"commit": given.commit, "command": given.command, "experts": given.experts}
            add(given.file, given.name, given.data, **facts)
            return 0
        return int(not all([check(name) for name in given.names or zoo.index()]))
    except UserError as error:
        print(f"fill_zoo: {error.in_flags}", file=sys.stderr)
        return 2


def add(file: str, name: str, data: str | None, **facts: str) -> None:
    """Evaluate a distilled set, and write its file and entry."""
    distilled = zoo.load(file)
    if distilled.dataset_name not in LICENCES:
        raise UserError(f"LICENCES has no terms of {distilled.dataset_name}; add them first")
    licence = LICENCES[distilled.dataset_name]
    path = zoo.FOLDER / f"{name}.safetensors"
    zoo.pack(path, distilled.with_score(score(file, data, seed=0)))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    entries = zoo.index() | {name: zoo.Entry(sha256=sha256, licence=licence, **facts)}
    files.write_json(zoo.FOLDER / zoo.INDEX, msgspec.to_builtins(entries))
    look = pictures.Look(scale=1, per_class=SHOWN)
    drawn = pictures.grid(
        distilled.preprocessing.invert(distilled.images),
        distilled.hard_labels,
        distilled.class_names,
        look,
    )
    files.write_bytes(PAGE.parent / "zoo" / f"{name}.png", drawn)
    fill(PAGE, "sets of the zoo", page())


def page() -> str:
    """Return the table of the sets and their pictures."""
    heads = ("set", "images", "labels", "bytes", "test accuracy, %", "network", "experts", "commit")
    found = [zoo.describe(name) for name in zoo.index()]
    rows = [
        (
            f"`{each['name']}`",
            f"{each['images']}, {each.get('parametrisation') or 'pixels'}",
            each["labels"],
            f"{each['stored_bytes']:,}",
            f"{each['scores'][-1]['mean']:.1f} ± {each['scores'][-1]['std']:.1f}",
            "{name} {width}".format(**each["network"]),
            each["experts"],
            each["commit"],
        )
        for each in found
    ]
    drawn = [f"`{each['name']}`:\n\n![{each['name']}](zoo/{each['name']}.png)" for each in found]
    return "\n\n".join([table(heads, rows), *drawn])


def check(name: str) -> bool:
    """Evaluate a set of the zoo with other networks; print and judge the difference."""
    kept = zoo.describe(name)["scores"][-1]
    found = score(f"{files.ZOO}{name}", None, seed=1)
    # Both are measured on the same test images: only the networks differ.
    errors = [each["std"] / math.sqrt(each["seeds"] - 1) for each in (kept, found)]
    difference, error = found["mean"] - kept["mean"], math.hypot(*errors)
    print(
        f"{name}: {kept['mean']:.2f} % in the zoo, {found['mean']:.2f} % again, difference "
        f"{difference:+.2f} +- {error:.2f}",
        flush=True,
    )
    return abs(difference) <= 2 * error


def score(file: str, data: str | None, seed: int) -> dict[str, Any]:
    """Return the test accuracy of networks that are trained on a set."""
    config = EvalConfig(
        file=Path(file), data=data, seeds=NETWORKS, seed=seed, random_baseline=False, quiet=True
    )
    result = evaluate_artifact(config)
    return {"split": "test", "protocol": result["protocol"], **result["distilled"]}


if __name__ == "__main__":
    sys.exit(main())
