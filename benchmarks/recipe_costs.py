"""Disk, GPU memory and time of the recipes, predicted, as tables of the docs.

    python benchmarks/recipe_costs.py

predicts them from the settings and the records in benchmarks/results, in seconds and without a GPU,
and fills in docs/recipes.md and docs/quickstart_gpu.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from doc_pages import fill, table

from trajmatch import files, networks, ops
from trajmatch.data import Dataset
from trajmatch.distill import DistillConfig
from trajmatch.distill.memory_plan import Forecast, leaner, planned
from trajmatch.distill.objectives import Plan
from trajmatch.distill.objectives.match_trajectory import MatchTrajectory, segments_of
from trajmatch.distill.objectives.train_and_test import TrainAndTest
from trajmatch.experts import ExpertConfig
from trajmatch.experts.config import kept_epochs
from trajmatch.experts.train import describe, expert_size, network_spec
from trajmatch.images import find_parametrisation
from trajmatch.pipeline import as_far_as_read
from trajmatch.recipes import Recipe, find_recipe, recipe_names

DOCS = Path(__file__).resolve().parents[1] / "docs"
RESULTS = Path(__file__).parent / "results"

#: Channels, side, classes and training images of the data sets.
SHAPES = {
    "cifar10": (3, 32, 10, 50_000),
    "cifar100": (3, 32, 100, 50_000),
    "tiny-imagenet": (3, 64, 200, 100_000),
    "imagenet": (3, 128, 10, 13_000),
    "fashion-mnist": (1, 28, 10, 60_000),
}
#: Network of the measured steps, but for its width.
TIMED = {"name": "ConvNet", "depth": 3, "image_size": 32, "in_channels": 3, "norm": "instance"}
#: Free memory of two usual sizes of GPUs.
CARDS = {"24 GB": 24_000_000_000, "80 GB": 80_000_000_000}
#: Tensors of the size of the synthetic set: images, gradient, momentum and average.
COPIES = 4

HEAD = ("recipe", "disk, GB", "GPU memory, GB", "time on an H200", "time on two CPU cores")
CARDS_HEAD = ("recipe", "disk, GB", "time on an H200", *(f"{each} card" for each in CARDS))


@dataclass(frozen=True)
class Run:
    """Configurations of a recipe, as `trajmatch run` makes them."""

    expert: ExpertConfig
    distill: DistillConfig
    dataset: Dataset  # of the right shape, with one image for each class

    @classmethod
    def of(cls, recipe: Recipe) -> Run:
        """Return the run of a recipe for one of :data:`SHAPES`."""
        expert, distill = configurations(recipe)
        if distill.experts is not None:
            expert = as_far_as_read(expert, distill)
        return cls(expert, distill, _dataset(recipe.data.partition("?")[0]))

    @property
    def needs_experts(self) -> bool:
        """False for train-and-test."""
        return self.distill.experts is not None

    @cached_property
    def network(self) -> dict[str, Any]:
        """Spec of the students' network."""
        return network_spec(self.expert if self.needs_experts else self.distill, self.dataset)

    @cached_property
    def model(self) -> torch.nn.Module:
        """Network of the students, without values."""
        with torch.device("meta"):
            return networks.build(self.network)

    @property
    def disk_bytes(self) -> int:
        """Bytes of the store."""
        if not self.needs_experts:
            return 0
        values = self.dataset.train_images[0].numel() if self.expert.zca else 0
        _, each = expert_size(describe(self.expert, self.dataset, self.dataset))
        return self.expert.num_experts * each + 4 * values * (values + 1) // 2

    @property
    def images(self) -> int:
        """Number of synthetic images."""
        shape = self.dataset.train_images.shape[1:]
        parametrisation = find_parametrisation(self.distill.images)
        return parametrisation.images_per_class(self.distill.ipc, shape) * self.dataset.num_classes

    @property
    def batch(self) -> int:
        """Synthetic images in a student step."""
        return min(self.distill.batch_syn or self.images, self.images)

    @property
    def steps(self) -> int:
        """Student steps that are differentiated."""
        return self.distill.student_steps if self.needs_experts else self.distill.window

    @property
    def tape(self) -> int:
        """Bytes of one image's activations in one student step on a GPU."""
        return ops.tape_bytes(self.model, [1], device="cuda")

    def kept_steps(self, plan: Plan) -> int:
        """Return the number of student steps whose activations are kept."""
        parted = plan.micro_batch is not None and plan.micro_batch < self.batch
        return 0 if parted else min(self.steps, plan.tape_bytes // (self.batch * self.tape))

    def memory_bytes(self, plan: Plan) -> int:
        """Return the peak memory of the distillation on a GPU."""
        kept, setup = self.kept_steps(plan), SimpleNamespace(config=self.distill)
        step = measured_step_bytes()[kept == self.steps]
        step *= min(plan.micro_batch or self.batch, self.batch)
        values = self.dataset.train_images[0].numel()
        other = COPIES * 4 * self.images * values
        if self.needs_experts:
            snapshots = kept_epochs(self.expert.keep, self.expert.epochs)
            window, loss = segments_of(self.distill, snapshots)
            objective: Any = MatchTrajectory(setup=setup, window=window, loss=loss)
        else:  # also the real images, of which 500 go through the network at a time
            objective = TrainAndTest(setup=setup, images=None, labels=None, normalise=None)
            step = max(step, measured_step_bytes()[0] * min(500, plan.micro_batch or 500))
            other += (4 if self.distill.zca else 1) * SHAPES[self.dataset.name][3] * values
        vectors = objective.vectors(self.steps) * 4 * networks.num_parameters(self.model)
        return int(other + vectors + (step + kept * self.batch) * self.tape)

    def plan(self, free: int) -> Plan | None:
        """Return the plan of `trajmatch distill` on a GPU; None if the leanest does not fit."""
        problem: Any = SimpleNamespace(
            config=self.distill,
            device=torch.device("cuda"),
            treats_images_alone=self.network["norm"] != "batch",
        )
        plan: Plan | None = planned(problem)
        while plan is not None:
            peak = self.memory_bytes(plan)
            if Forecast(plan, 0.0, peak, peak, free).fits:
                return plan
            plan = leaner(problem, plan, self.images)
        return None

    def seconds(self, device: str) -> tuple[float, float] | None:
        """Return the times of experts and distillation on ``"cuda"`` or ``"cpu"``.

        None if no such steps were measured.
        """
        network, kind = self.network, "gsam" if self.expert.rho else "plain"
        kind = "penalty" if self.expert.penalty else kind
        steps, experts = measured_steps(device), measured_experts(device)
        known = {**network, **TIMED} == network and (network["width"], kind) in experts
        if not (known and self.needs_experts and self.distill.images == "pixels"):
            return None
        epochs = self.expert.num_experts * self.expert.trained_epochs
        batches = SHAPES[self.dataset.name][3] / 256
        of_experts = epochs * batches * experts[network["width"], kind]
        points = steps[network["width"]]
        step = np.interp(self.batch, [*points], [*points.values()])
        step *= max(1.0, self.batch / max(points))
        return of_experts, float(self.distill.iterations * self.steps * step)


def configurations(recipe: Recipe) -> tuple[ExpertConfig, DistillConfig]:
    """Return the configurations of experts (unused by train-and-test) and distillation."""
    scores = Path("scores") if "curriculum" in recipe.expert else None
    expert = ExpertConfig(out=Path("store"), scores=scores, **recipe.expert)
    store = None if recipe.distill.get("objective") == "train-and-test" else expert.out
    return expert, DistillConfig(experts=store, out=Path("distilled"), **recipe.distill)


@cache
def _dataset(name: str) -> Dataset:
    channels, side, classes, _ = SHAPES[name]
    images = torch.arange(classes * channels * side**2) % 251  # a channel has to vary
    images = images.to(torch.uint8).view(classes, channels, side, side)
    labels = torch.arange(classes)
    return Dataset(name, images, labels, images, labels, tuple(map(str, range(classes))))


def record(name: str) -> dict[str, Any]:
    return files.read_json(RESULTS / f"{name}.json")


def gpu_record(stage: str) -> dict[str, Any]:
    return record("gpu_check_h200")["stages"][stage]["result"]["table"]


@cache
def measured_step_bytes() -> tuple[float, float]:
    """Return the memory of a student step on a GPU, per byte of its activations.

    First for steps that recompute the activations in the adjoint, then for those that keep them.
    """
    row = gpu_record("outer_iteration")["width 128, batch 100, N 80"]
    model = networks.ConvNet(3, 10, 32, width=128)
    tape = ops.tape_bytes(model, [100], device="cuda")
    vectors = 4 * networks.num_parameters(model) * (80 + 3)
    lean, kept = (row[f"trajmatch{each}_graph"]["peak_bytes"] - vectors for each in ("", "_tape"))
    return lean / tape, kept / tape - 80


@cache
def measured_steps(device: str) -> Mapping[int, Mapping[int, float]]:
    """Return the seconds of a student step by width and, ascending, number of images.

    On the GPU activations are kept, on the CPU they are not.
    """
    if device == "cuda":
        rows = [row for row in gpu_record("outer_iteration").values() if row["width"] == 128]
        found = {row["batch"]: row["trajmatch_tape_graph"]["median"] / row["steps"] for row in rows}
        return {128: dict(sorted(found.items()))}
    cells = record("outer_iteration_cpu")["cells"]
    return {
        width: {
            batch: cells[f"{width},{batch},30"]["rows"]["trajmatch"]["seconds"]["median"] / 30
            for batch in (10, 50, 100, 500)
        }
        for width in (32, 64, 128)
    }


@cache
def measured_experts(device: str) -> Mapping[tuple[int, str], float]:
    """Return the seconds of an expert's step on 256 images by width and kind."""
    if device == "cuda":
        plain = gpu_record("expert_step")["trajmatch, with normalisation and DSA"]["seconds_each"]
        run = record("datm_cifar10_ipc10_h200")
        epochs = run["counts"]["experts"]["done"] * run["settings"]["experts"]["epochs"]
        gsam = run["seconds"]["experts"] / epochs / (SHAPES["cifar10"][3] / 256)
        return {(128, "plain"): plain, (128, "gsam"): gsam}
    groups = record("expert_step_cpu")["groups"]
    return {
        (width, kind): groups[
            f"expert step ({kind}), cpu, width {width}, 2 threads, augmentation none"
        ]["variants"]["trajmatch"]["median"]
        for width in (32, 128)
        for kind in ("plain", "gsam", "penalty")
    }


def row(run: Run) -> list[str]:
    """Return a run in the order of :data:`HEAD`, without its name."""
    lean = run.memory_bytes(Plan())
    default = run.memory_bytes(run.plan(CARDS["80 GB"]) or Plan())
    return [_disk(run), f"{_gb(default)}, {_gb(lean)}", _time(run, "cuda"), _time(run, "cpu")]


def cards_row(run: Run) -> list[str]:
    """Return a run in the order of :data:`CARDS_HEAD`, without its name."""
    return [_disk(run), _time(run, "cuda"), *(_fit(run, free) for free in CARDS.values())]


def _disk(run: Run) -> str:
    return _gb(run.disk_bytes) if run.needs_experts else "none"


def _number(value: float) -> str:
    return f"{float(f'{value:.2g}'):g}"


def _gb(count: float) -> str:
    return _number(count / 1e9)


def _fit(run: Run, free: int) -> str:
    plan = run.plan(free)
    if plan is None:
        return "does not fit"
    kept = run.kept_steps(plan)
    steps = {0: "no steps", run.steps: "all steps"}.get(kept, f"{kept} of {run.steps} steps")
    return f"{_gb(run.memory_bytes(plan))} GB, {steps} kept{plan.parts}"


def _time(run: Run, device: str) -> str:
    found = run.seconds(device)
    return "" if found is None else " + ".join(map(_duration, found))


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{_number(seconds / size)} {unit}"
    return f"{_number(seconds)} s"


def grouped(runs: Iterable[tuple[str, list[str]]]) -> list[list[str]]:
    """Join the rows of subsets of ImageNet that cost the same."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, cells in runs:
        pattern = re.sub(r"imagenet-\w+", "imagenet-*", name)
        groups.setdefault((pattern, *cells), []).append(name)
    return [
        [f"`{key[0] if len(names) > 1 else names[0]}`", *key[1:]] for key, names in groups.items()
    ]


def tables() -> dict[str, str]:
    """Return the tables by page."""
    recipes = [each for each in map(find_recipe, recipe_names()) if each.data]
    runs = {each.name: Run.of(each) for each in recipes}
    papers = {name: run for name, run in runs.items() if name.startswith(("mtt/", "datm/"))}
    return {
        "recipes": table(HEAD, grouped((name, row(run)) for name, run in runs.items())),
        "quickstart_gpu": table(
            CARDS_HEAD, grouped((name, cards_row(run)) for name, run in papers.items())
        ),
    }


if __name__ == "__main__":
    for page, text in tables().items():
        fill(DOCS / f"{page}.md", "costs", text)
