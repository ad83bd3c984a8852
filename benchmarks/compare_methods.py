"""MTT, FTD, AST and DATM beside random and chosen real images, under one protocol on CIFAR-10.

    python benchmarks/compare_methods.py --data cifar10:ROOT --out runs/comparison --budget 25m

as often as it ends with status 75: every call goes on where the last one stopped. The record is
written after every piece; when it is complete, docs/comparison.md gets its tables.

Seconds on two cores, by ``comparison.methods.CIFAR10`` (ConvNet of width 32 and depth 3; all
50,000 training images; four methods and four baselines, 3 seeds each):

    experts         10 experts x 10 epochs, two at a time; an epoch takes one thread 6.5 s with
                    plain SGD, 12 s with GSAM, 30 s with the penalty
                    10 x 10 x (6.5 s + 12 s + 30 s) / 2                                  2425
    distillation    4 methods x 3 seeds x 2000 outer iterations, in seconds each:
                    0.08 for 1 image per class (40 student steps of 10 images)           1920
                    0.20 for 10 (20 student steps of 50 images)                          4800
    networks        8 methods x 3 seeds x 3 networks x 1000 epochs and 10,000 test images, each:
                    5 s for 1 image per class, 20 s for 10                               1800
    reading, first images, labels: 48 runs x 10 s                                         480
                                                                                  in all 11425

which is 3.2 of the 4 hours that it may take.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.program import program
from comparison import page
from comparison.methods import (
    CIFAR10,
    CIFAR10_EQUAL_TIME,
    CIFAR10_FIELD,
    EQUAL_TIME,
    EXPERTS,
    FIELD,
    METHODS,
    PAPERS,
    REAL,
    REAL_SOFT,
    Method,
    Scale,
    distill_fields,
    experts_of,
)
from doc_pages import fill
from slices import COME_AGAIN, SliceOver, Slices, duration
from torch import Tensor, cat

from trajmatch import files, networks
from trajmatch.data import Dataset, load_dataset, resolve_uri
from trajmatch.distill import DistillConfig
from trajmatch.errors import UserError
from trajmatch.evaluate import Protocol, k_center, random_subset, train_fresh
from trajmatch.experts import ExpertConfig, Store
from trajmatch.experts.final import FinalExperts, soft_labels
from trajmatch.experts.scores import ScoreConfig, path_beside, score_images
from trajmatch.random import derive_seed, generator

HERE = Path(__file__).resolve().parent

#: Methods of a comparison, scale and name of its record, by the argument that asks for it.
COMPARISONS = {
    "papers": (PAPERS, CIFAR10, "comparison"),
    "field": (FIELD, CIFAR10_FIELD, "comparison_field"),
    "equal-time": (EQUAL_TIME, CIFAR10_EQUAL_TIME, "comparison_equal_time"),
}


@program
def main(argv: Sequence[str] | None, scale: Scale | None = None) -> int:
    """Compare the methods; the status is 0, 2 for a mistake of the user, or 75."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for experts and images")
    parser.add_argument("--data", help="data set, e.g. cifar10:ROOT (by TRAJMATCH_DATA)")
    parser.add_argument("--budget", type=duration, help="time for this call, e.g. 25m (no limit)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--methods", choices=COMPARISONS, default="papers")
    parser.add_argument(
        "--only", action="append", metavar="METHOD", help="a method to run now; repeatable (all)"
    )
    parser.add_argument("--record", type=Path)
    parser.add_argument("--page", type=Path, default=HERE.parent / "docs" / "comparison.md")
    given = parser.parse_args(argv)
    methods, usual, name = COMPARISONS[given.methods]
    everything = (*REAL, *REAL_SOFT, *methods)
    for method in given.only or ():
        if method not in everything:
            raise UserError(f"--only {method!r} is none of {', '.join(map(repr, everything))}")
    record_path = given.record or HERE / "results" / f"{name}.json"
    uri = given.data or resolve_uri("cifar10")
    if uri is None:
        raise UserError(
            "the data set 'cifar10' is not found under the folders in TRAJMATCH_DATA; say where "
            "it is with --data"
        )
    for folder in (given.out, record_path.parent):
        files.check_writable(folder)
    slices = Slices(record_path, slice_seconds=given.budget)
    try:
        record = compare(scale or usual, uri, given.out, slices, given.device, methods, given.only)
    except SliceOver:
        print(f"{slices.spent:.0f} s are spent in all; the same command goes on")
        return COME_AGAIN
    fill(given.page, "result" if methods is PAPERS else f"result of {name}", page.result(record))
    print(page.result(record))
    return 0


def compare(
    scale: Scale,
    uri: str,
    out: Path,
    slices: Slices,
    device: str = "cpu",
    methods: Mapping[str, Method] = PAPERS,
    only: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Compare methods, or do what earlier calls left of it.

    Every run of every method is one entry of ``record["cells"][method][ipc]``; the runs come in the
    order of their seeds, so that an unfinished record has the same runs of every method. What is in
    the record is not done again, even where the folder is gone.

    Args:
        scale: What is the same for all.
        uri: Data set.
        out: Folder for experts and distilled images.
        slices: State, which is the record, and time.
        device: Where to compute.
        methods: The methods, of :data:`METHODS`.
        only: Methods and baselines to run now; the record lacks the others. None: all.

    Returns:
        The record, complete but for methods that are not in ``only``.

    Raises:
        SliceOver: The time of this call is over; the same call goes on.
        UserError: Data or folder cannot be used, or the record is of another comparison.
    """
    comparison = Comparison(scale, uri, load_dataset(uri), out, slices, device)
    fields = {
        name: {ipc: distill_fields(name, scale, ipc) for ipc in scale.distill} for name in methods
    }
    slices.begin(
        {
            "scale": asdict(scale),
            "experts": experts_of(methods),
            "methods": fields,
            "data": comparison.dataset.fingerprint,
            "device": device,
        },
        device,
    )
    most = max(map(scale.seeds_at, scale.distill))
    for seed, ipc, method in product(range(most), scale.distill, (*REAL, *REAL_SOFT, *methods)):
        if seed >= scale.seeds_at(ipc) or (only and method not in only):
            continue
        runs = slices.state.setdefault("cells", {}).setdefault(method, {}).setdefault(str(ipc), [])
        if len(runs) == seed:
            runs.append({"accuracies": []})
        if len(runs[seed]["accuracies"]) < scale.networks:
            comparison.run(method, ipc, seed, runs[seed])
            accuracy = fmean(runs[seed]["accuracies"])
            print(f"{method}, {ipc} per class, seed {seed}: {accuracy:.2f} %", flush=True)
    slices.save()  # with the seconds since the last piece
    return slices.state


@dataclass(frozen=True)
class TrainingSet:
    """A set that the networks of a run are trained on.

    Attributes:
        images: Normalised. ``[n, C, H, W]``, float32.
        labels: Class indices ``[n]``, int64, or target logits ``[n, K]``, float32.
        step_size: Step size of the training.
        facts: What the record says of it.
    """

    images: Tensor
    labels: Tensor
    step_size: float
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Comparison:
    """The runs of a comparison.

    Attributes:
        scale: What is the same for all methods.
        uri: Where the data set is.
        dataset: The data set.
        out: Folder for experts and distilled images.
        slices: State, which is the record, and time.
        device: Where to compute.
    """

    scale: Scale
    uri: str
    dataset: Dataset
    out: Path
    slices: Slices
    device: str

    def run(self, method: str, ipc: int, seed: int, entry: dict[str, Any]) -> None:
        """Train and test the networks of a run that its entry in the record lacks.

        Raises:
            SliceOver: The time of this call is over.
        """
        make = self._distilled if method in METHODS else self._real
        found = make(method, ipc, seed)
        entry.update(found.facts, step_size=found.step_size)
        test_images = self.training.normalise(self.dataset.test_images)
        spec = self.experts("plain").manifest["network"]
        protocol = Protocol(lr=found.step_size, epochs=self.scale.eval_epochs)
        done: list[float] = entry["accuracies"]
        part = f"networks, {ipc} per class"
        for piece in self.slices.pieces(part, len(done), self.scale.networks):
            outcome = train_fresh(
                found.images,
                found.labels,
                spec,
                protocol,
                test_images,
                self.dataset.test_labels,
                # the same for all methods, whose networks thus begin alike
                seed=derive_seed(seed, "compare", piece.start),
                device=self.device,
            )
            done.append(outcome.accuracy)

    @cached_property
    def training(self) -> Dataset:
        """The training images that experts and methods see."""
        return self.experts("plain").training_set(self.dataset)[0]

    def experts(self, kind: str) -> Store:
        """Return the experts of a kind; those that are missing are trained."""
        settings = {**self.scale.experts, **EXPERTS[kind]}
        if "curriculum" in settings:  # by how hard the images are for plain experts
            plain = self.experts("plain")
            settings["scores"] = path_beside(plain.path)
            if not settings["scores"].exists():
                score_images(ScoreConfig(store=plain.path, data=self.uri, device=self.device))
        config = ExpertConfig(
            out=self.out / "experts" / kind,
            data=self.uri,
            device=self.device,
            resume=True,
            quiet=True,
            **settings,
        )
        store = self.slices.experts(f"{kind} experts", config)
        found = [store.metrics(number)["test_accuracy"] for number in range(store.num_experts)]
        self.slices.state.setdefault("experts", {})[kind] = found
        return store

    def _real(self, method: str, ipc: int, seed: int) -> TrainingSet:
        """Choose real images from those that the experts saw."""
        training, (choice, _, soft) = self.training, method.partition(", ")
        if choice == "random real":
            draw = generator(seed, "compare", choice, ipc)
            chosen = random_subset(training.train_labels, ipc, draw)
        else:
            chosen = k_center(self._logits(seed), training.train_labels, ipc)
        images = training.normalise(training.train_images[chosen])
        labels = training.train_labels[chosen]
        if soft:
            labels = soft_labels(images, labels, self._plain)
        facts = {"labels": soft or "hard", "stored_bytes": images.nbytes + labels.nbytes}
        return TrainingSet(images, labels, self.scale.real_lr, facts)

    @cached_property
    def _plain(self) -> FinalExperts:
        store = self.experts("plain")
        model = networks.build(store.manifest["network"]).to(self.device)
        return FinalExperts(store, model, "k-center")

    def _logits(self, seed: int) -> Tensor:
        """Return the logits of a plain expert for all images, ``[N, K]``; another for each seed."""
        experts = self._plain
        parts = self.training.train_images.split(1000)  # normalised at once, they take four times
        expert = seed % experts.count
        return cat([experts.logits(expert, self.training.normalise(part)) for part in parts])

    def _distilled(self, method: str, ipc: int, seed: int) -> TrainingSet:
        """Distil by a method."""
        kind = METHODS[method].experts
        files.check_writable(self.out / "distilled")
        config = DistillConfig(
            experts=None if kind is None else self.experts(kind).path,
            out=self.out / "distilled" / f"{method.lower()}-ipc{ipc}-seed{seed}.safetensors",
            data=self.uri,
            seed=seed,
            device=self.device,
            checkpoint_every=self.scale.checkpoint_every,
            resume=True,
            quiet=True,
            **distill_fields(method, self.scale, ipc),
        )
        result = self.slices.distil(f"{method}, {ipc} per class", config)
        facts = {
            **matching(config.log_path),
            "fingerprint": result.fingerprint,
            "labels": "hard" if result.label_kind == "index" else "soft",
            "stored_bytes": result.stored_bytes,
        }
        return TrainingSet(result.images, result.labels, result.lr, facts)


def matching(log: Path) -> dict[str, Any]:
    """Summarise the log of a distillation.

    Args:
        log: Its metrics.

    Returns:
        ``matching_loss``: its mean over the first and the last tenth of the iterations, and
        ``skipped`` and ``refused``: the number of updates that were not made.
    """
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    losses = [line["loss"] for line in lines if line["loss"] is not None]
    tenth = max(1, len(losses) // 10)
    return {
        "matching_loss": [fmean(losses[:tenth]), fmean(losses[-tenth:])],
        "skipped": sum(line.get("skipped", False) for line in lines),
        "refused": sum(line["refused"] is not None for line in lines),
    }


if __name__ == "__main__":
    sys.exit(main())
