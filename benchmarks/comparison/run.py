"""The comparison itself, piece by piece: experts, distillation, networks."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from reproduction.clock import Clock
from reproduction.run import commit, device_name
from torch import Tensor

from comparison.methods import EXPERTS, METHODS, REAL, Scale, distill_fields
from trajmatch import artifact, files, networks
from trajmatch.data import Dataset, load_dataset
from trajmatch.distill import DistillConfig, distill
from trajmatch.errors import UserError
from trajmatch.evaluate import Protocol, k_center, random_subset, train_fresh
from trajmatch.experts import ExpertConfig, train_experts
from trajmatch.experts.final import FinalExperts
from trajmatch.experts.store import Store, exists
from trajmatch.experts.train import automatic_workers
from trajmatch.random import derive_seed, generator


def compare(
    scale: Scale,
    uri: str,
    out: Path,
    clock: Clock,
    device: str = "cpu",
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Compares all methods, or does what earlier calls left of it.

    Every run of every method is one entry of ``record["cells"][method][ipc]``; the runs come in the
    order of their seeds, so that an unfinished record has the same runs of every method. What is in
    the record is not done again, even where the folder is gone.

    Args:
        scale: What is the same for all.
        uri: Data set.
        out: Folder for experts and distilled images.
        clock: Says when to stop; its state is the record.
        device: Where to compute.
        say: Told what is finished.

    Returns:
        The record, complete.

    Raises:
        SliceOver: The time of this call is over; the same call goes on.
        UserError: Data or folder cannot be used, or the record is of another comparison.
    """
    comparison = Comparison(scale, uri, load_dataset(uri), out, clock, device)
    comparison.begin()
    for seed, ipc, name in product(range(scale.seeds), scale.distill, (*REAL, *METHODS)):
        run = Run(name, ipc, seed)
        if not is_finished(clock.state, run):
            say(f"{run}: {fmean(comparison.accuracies(run)):.2f} %")
    clock.save()  # with the seconds since the last piece
    return clock.state


@dataclass(frozen=True)
class Run:
    """One run of a method.

    Attributes:
        method: Its name.
        ipc: Images per class.
        seed: Seed of all that is random in it.
    """

    method: str
    ipc: int
    seed: int

    def __str__(self) -> str:
        return f"{self.method}, {self.ipc} per class, seed {self.seed}"

    @property
    def file_name(self) -> str:
        """The name of its distilled file."""
        return f"{self.method.lower()}-ipc{self.ipc}-seed{self.seed}.safetensors"


@dataclass(frozen=True)
class TrainingSet:
    """What the networks of a run are trained on.

    Attributes:
        images: Normalised. ``[n, C, H, W]``, float32.
        labels: Class indices ``[n]``, int64, or target logits ``[n, K]``, float32.
        step_size: Step size of the training.
        facts: What the record says of it.
    """

    images: Tensor
    labels: Tensor
    step_size: float
    facts: dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """What every piece of the comparison works on.

    Attributes:
        scale: What is the same for all methods.
        uri: Where the data set is.
        dataset: The data set.
        out: Folder for experts and distilled images.
        clock: Says when to stop; its state is the record.
        device: Where to compute.
    """

    scale: Scale
    uri: str
    dataset: Dataset
    out: Path
    clock: Clock
    device: str

    def begin(self) -> None:
        """Makes sure that the record is of this comparison, and notes that there was a call.

        Raises:
            UserError: It is of another one.
        """
        record, wanted = self.clock.state, self._identity()
        found = record.setdefault("identity", wanted)
        differing = [name for name in wanted if found.get(name) != wanted[name]]
        if differing:
            raise UserError(
                f"the record is of a comparison with other {', '.join(differing)}; give --record "
                "and --out new places, or finish it with the release that began it"
            )
        record.setdefault("cells", {})
        record.setdefault("experts", {})
        record["calls"] = record.get("calls", 0) + 1
        record["device"] = device_name(self.device)
        record["versions"] = artifact.current_versions()
        commits = record.setdefault("commits", [])
        if commit() not in commits:
            commits.append(commit())
        self.clock.save()

    def _identity(self) -> dict[str, Any]:
        """What decides the numbers, as JSON gives it back."""
        scale = self.scale
        identity = {
            "scale": asdict(scale),
            "experts": EXPERTS,
            "methods": {
                name: {ipc: distill_fields(name, scale, ipc) for ipc in scale.distill}
                for name in METHODS
            },
            "data": self.dataset.fingerprint,
            "device": self.device,
        }
        return json.loads(json.dumps(identity))

    def accuracies(self, run: Run) -> list[float]:
        """Trains and tests the networks of a run that the record lacks.

        Args:
            run: Which run.

        Returns:
            The accuracy of each of its networks, in percent; the record has them, too.

        Raises:
            SliceOver: The time of this call is over.
        """
        found = self._real(run) if run.method in REAL else self._distilled(run)
        entry = entry_of(self.clock.state, run)
        entry.update(found.facts, step_size=found.step_size)
        test_images = self.training.normalise(self.dataset.test_images)
        network_spec = self.experts("plain").manifest["network"]
        protocol = Protocol(lr=found.step_size, epochs=self.scale.eval_epochs)
        with self.clock.part(f"networks, {run.ipc} per class"):
            for network in range(len(entry["accuracies"]), self.scale.networks):
                self.clock.has_time(1.0)
                outcome = train_fresh(
                    found.images,
                    found.labels,
                    network_spec,
                    protocol,
                    test_images,
                    self.dataset.test_labels,
                    # the same for all methods, whose networks thus begin alike
                    seed=derive_seed(run.seed, "compare", network),
                    device=self.device,
                )
                entry["accuracies"].append(outcome.accuracy)
                self.clock.done()
        return entry["accuracies"]

    @cached_property
    def training(self) -> Dataset:
        """The training images that experts and methods see."""
        return self.experts("plain").training_set(self.dataset)[0]

    def experts(self, kind: str) -> Store:
        """The experts of a kind; those that are missing are trained.

        Args:
            kind: A key of :data:`comparison.methods.EXPERTS`.

        Raises:
            SliceOver: The time of this call is over.
        """
        path, record = self.out / "experts" / kind, self.clock.state["experts"]
        fields = {**self.scale.experts, **EXPERTS[kind]}
        wanted = fields.pop("num_experts")
        at_once = fields.get("workers") or automatic_workers(self.device, fields["width"])
        begun, done = 0, 0
        if exists(path):
            store = Store.open(path, complete=False)
            begun = store.num_experts
            done = begun - len(store.missing())
        with self.clock.part(f"{kind} experts"):
            while done < wanted:
                target = min(wanted, max(begun, done + at_once))
                self.clock.has_time(1.0, target - done)
                train_experts(
                    ExpertConfig(
                        out=path,
                        data=self.uri,
                        num_experts=target,
                        device=self.device,
                        resume=True,
                        quiet=True,
                        **fields,
                    )
                )
                items, done = target - done, target
                self.clock.done(items)
        store = Store.open(path)
        if kind not in record:
            record[kind] = [store.metrics(number)["test_accuracy"] for number in range(wanted)]
        return store

    def _real(self, run: Run) -> TrainingSet:
        """Real images, chosen from those that the experts saw."""
        training = self.training
        if run.method == "random real":
            draw = generator(run.seed, "compare", "random real", run.ipc)
            chosen = random_subset(training.train_labels, run.ipc, draw)
        else:
            chosen = k_center(self._logits(run.seed), training.train_labels, run.ipc)
        return TrainingSet(
            training.normalise(training.train_images[chosen]),
            training.train_labels[chosen],
            self.scale.real_lr,
            {},
        )

    def _logits(self, seed: int) -> Tensor:
        """What a plain expert, another for every seed, says of all images. ``[N, K]``."""
        store = self.experts("plain")
        model = networks.build(store.manifest["network"]).to(self.device)
        experts = FinalExperts(store, model, "k-center")
        parts = self.training.train_images.split(1000)  # normalised at once, they take four times
        expert = seed % experts.count
        return torch.cat([experts.logits(expert, self.training.normalise(part)) for part in parts])

    def _distilled(self, run: Run) -> TrainingSet:
        """What a method makes of the images."""
        scale = self.scale
        store = self.experts(METHODS[run.method].experts)
        files.check_writable(self.out / "distilled")
        config = DistillConfig(
            experts=store.path,
            out=self.out / "distilled" / run.file_name,
            data=self.uri,
            seed=run.seed,
            device=self.device,
            checkpoint_every=scale.checkpoint_every,
            resume=True,
            quiet=True,
            **distill_fields(run.method, scale, run.ipc),
        )
        with self.clock.part(f"{run.method}, {run.ipc} per class"):
            self.clock.has_time(1.0, scale.checkpoint_every)
            result = distill(config, Watch(self.clock, scale.checkpoint_every))
        facts = {**matching(config.log_path), "fingerprint": result.fingerprint}
        return TrainingSet(result.images, result.labels, result.lr, facts)


class Watch:
    """Hears how far a distillation is, and ends it at a checkpoint when time is up.

    Args:
        clock: Says when.
        every: Iterations from one checkpoint to the next.
    """

    def __init__(self, clock: Clock, every: int) -> None:
        self._clock, self._every = clock, every
        self._begun = False

    def update(self, done: int, **numbers: float) -> None:
        """Books what was done since the last checkpoint, if there is one now.

        Raises:
            SliceOver: The next checkpoint would come too late.
        """
        if self._begun and done % self._every == 0:
            self._clock.done(self._every)
            self._clock.has_time(1.0, self._every)
        self._begun = True


def matching(log: Path) -> dict[str, Any]:
    """How a distillation went.

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


def entry_of(record: dict[str, Any], run: Run) -> dict[str, Any]:
    """The entry of a run in a record, with ``accuracies``; a new one where there is none."""
    runs = record["cells"].setdefault(run.method, {}).setdefault(str(run.ipc), [])
    if len(runs) == run.seed:
        runs.append({"accuracies": []})
    entry: dict[str, Any] = runs[run.seed]
    return entry


def is_finished(record: dict[str, Any], run: Run) -> bool:
    """Whether a record has all networks of a run."""
    runs = record.get("cells", {}).get(run.method, {}).get(str(run.ipc), [])
    wanted = record["identity"]["scale"]["networks"]
    return len(runs) > run.seed and len(runs[run.seed]["accuracies"]) == wanted
