"""Gain over random real images of the recipe for a few images of your own, on six small sets.

    python benchmarks/small_sets.py --cifar10 cifar10:ROOT --fashion fashion-mnist:ROOT --out FILE

Each set goes through ``trajmatch run --recipe cpu/own/ipc1``. The settings of the recipe were
chosen on other sets; :data:`SETS` was written before the recipe ran on these six. Ten networks are
trained on the distilled set, and ten on random real images, one per class and drawn anew for each
network. The standard error of the gain combines networks, draws and the number of test images.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import bench  # noqa: F401  before torch, which reads its settings of OpenMP
import numpy as np
from bench import facts
from bench.program import program
from doc_pages import fill, table
from PIL import Image

from trajmatch import files
from trajmatch.cli.main import main as trajmatch_program
from trajmatch.data import load_dataset
from trajmatch.errors import UserError

RECIPE = "cpu/own/ipc1"
PAGE = Path(__file__).resolve().parent.parent / "docs" / "data.md"
#: Networks trained on each set.
NETWORKS = 10


@dataclass(frozen=True)
class OwnSet:
    """A small set: some classes of a larger one, with few training images.

    Attributes:
        source: ``cifar10``, ``fashion`` or ``digits`` (scikit-learn's, enlarged to 32 x 32).
        classes: Its classes.
        per_class: Training images of each.
        test_images: Test images of all classes together.
    """

    source: str
    classes: tuple[int, ...]
    per_class: int
    test_images: int = 1000


SETS = {
    "CIFAR-10, odd classes": OwnSet("cifar10", (1, 3, 5, 7, 9), 100),
    "CIFAR-10, even classes": OwnSet("cifar10", (0, 2, 4, 6, 8), 40),
    "CIFAR-10": OwnSet("cifar10", tuple(range(10)), 200),
    "Fashion-MNIST, first classes": OwnSet("fashion", (0, 1, 2, 3, 4), 20),
    "Fashion-MNIST": OwnSet("fashion", tuple(range(10)), 150),
    "digits": OwnSet("digits", tuple(range(10)), 60, 700),
}


@program
def main(argv: Sequence[str] | None) -> int:
    """Run the recipe on all sets; print the table, write record and page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cifar10", help="address of CIFAR-10, e.g. cifar10:ROOT")
    parser.add_argument("--fashion", help="address of Fashion-MNIST, e.g. fashion-mnist:ROOT")
    parser.add_argument("--only", action="append", choices=SETS, help="a set; repeatable (all)")
    parser.add_argument("--out", type=Path, help="file for the record")
    parser.add_argument("--page", type=Path, help=f"page to fill in (docs/{PAGE.name})")
    given = parser.parse_args(argv)
    record: dict[str, Any] = {"recipe": RECIPE, **facts.machine("cpu"), **facts.origin()}
    record["sets"] = {}
    for name in given.only or SETS:
        address = {"cifar10": given.cifar10, "fashion": given.fashion}.get(SETS[name].source, "")
        if address is None:
            raise UserError(f"the set {name!r} is made from --{SETS[name].source}; give it")
        record["sets"][name] = found = measured(SETS[name], address)
        print(f"{name}: {found['gain']:+.1f} ± {found['error']:.1f} points", flush=True)
        if given.out is not None:
            files.write_json(given.out, record)
    print(as_table(record))
    if given.page is not None:
        fill(given.page, "result of small_sets", as_table(record))
    return 0


def measured(own: OwnSet, address: str) -> dict[str, Any]:
    """Run the recipe on a set; return accuracies, the gain, its error and the seconds."""
    with tempfile.TemporaryDirectory() as folder:
        data = write_set(own, address, Path(folder) / "data.npz")
        out = Path(folder) / "result"
        arguments = ["--data", data, "--out", str(out), "--seeds", str(NETWORKS), "--quiet"]
        status = trajmatch_program(["run", "--recipe", RECIPE, *arguments])
        if status != 0:
            raise UserError(f"trajmatch run ended with status {status}")
        summary = files.read_json(out / "summary.json")
    distilled, real = (summary[name]["accuracies"] for name in ("distilled", "random_real"))
    return {
        "training_images": summary["training_images"],
        "test_images": summary["test_images"],
        "experts": summary["experts"],
        "distilled": distilled,
        "random_real": real,
        "gain": summary["improvement"],
        "error": summary["improvement_error"],
        "seconds": summary["stage_seconds"],
    }


def write_set(own: OwnSet, address: str, path: Path) -> str:
    """Write a set as arrays and return its address; the images are drawn from the seed 0."""
    draw = np.random.default_rng(0)
    parts = dict(_parts(own, address))
    chosen = {}
    counts = {"train": own.per_class, "test": own.test_images // len(own.classes)}
    for part, (images, labels) in parts.items():
        indices = [draw.permutation(np.flatnonzero(labels == each)) for each in own.classes]
        if part == "all":  # one pool: the test images are others than the training images
            first = [each[: counts["train"]] for each in indices]
            rest = [each[counts["train"] :][: counts["test"]] for each in indices]
            split = {"train": first, "test": rest}
        else:
            split = {part: [each[: counts[part]] for each in indices]}
        for name, of_class in split.items():
            chosen[f"x_{name}"] = images[np.concatenate(of_class)]
            chosen[f"y_{name}"] = np.repeat(np.arange(len(of_class)), [*map(len, of_class)])
    np.savez(path, **chosen)
    return f"npz:{path}"


def _parts(own: OwnSet, address: str) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
    if own.source == "digits":
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise UserError("digits come with scikit-learn: pip install scikit-learn") from error
        digits = load_digits()
        pictures = (Image.fromarray((each * 15.9375).astype(np.uint8)) for each in digits.images)
        enlarged = [np.asarray(each.resize((32, 32), Image.BILINEAR)) for each in pictures]
        yield "all", (np.stack(enlarged)[..., None], digits.target)
        return
    dataset = load_dataset(address)
    for part in ("train", "test"):
        images = getattr(dataset, f"{part}_images").numpy().transpose(0, 2, 3, 1)
        yield part, (images, getattr(dataset, f"{part}_labels").numpy())


def as_table(record: Mapping[str, Any]) -> str:
    """Return the table of a record in Markdown."""
    head = [
        "set",
        "classes x images",
        "random real, %",
        "distilled, %",
        "gain",
        "experts, %",
        "seconds",
    ]
    rows = []
    for name, found in record["sets"].items():
        own = SETS[name]
        rows.append(
            [
                name,
                f"{len(own.classes)} x {own.per_class}",
                f"{fmean(found['random_real']):.1f}",
                f"{fmean(found['distilled']):.1f}",
                f"{found['gain']:+.1f} ± {found['error']:.1f}",
                f"{fmean(found['experts']['accuracies']):.1f}",
                f"{found['seconds']['experts']:.0f} + {found['seconds']['distillation']:.0f}",
            ]
        )
    return table(head, rows)


if __name__ == "__main__":
    sys.exit(main())
