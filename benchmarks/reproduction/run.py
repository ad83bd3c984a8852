"""Raw data to accuracy: experts, distillation, evaluation, as much of each as the budget allows."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reproduction.clock import Clock
from reproduction.recipes import SHARES, Recipe
from trajmatch import artifact, files
from trajmatch.artifact import Artifact
from trajmatch.data import Dataset, load_dataset, normalise, resolve_uri
from trajmatch.distill import DistillConfig, distill
from trajmatch.errors import UserError
from trajmatch.evaluate import Protocol, Score, random_subset, train_and_test
from trajmatch.experts import ExpertConfig, train_experts
from trajmatch.experts.store import Store
from trajmatch.experts.train import automatic_workers
from trajmatch.random import derive_seed, generator

#: Experts are trained so many seconds at a time, since every time begins with reading the data.
SECONDS_OF_EXPERTS = 20.0


class BudgetOver(Exception):
    """The distillation's share of the budget is spent."""


def reproduce(
    name: str,
    recipe: Recipe,
    out: Path,
    clock: Clock,
    data: str | None = None,
    device: str = "cpu",
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Runs a recipe, or what earlier runs left of it.

    Args:
        name: The recipe's name.
        recipe: What to do.
        out: Folder for experts, images, state and ``result.json``.
        clock: Says when to stop.
        data: URI of the data set, where it is not found by its name.
        device: Where to compute.
        seed: Seed of everything random.
        say: Told what is going on.

    Returns:
        The content of ``result.json``.

    Raises:
        SliceOver: The time of this run is over; the same call goes on.
        UserError: Data or folder cannot be used, or the folder holds another recipe.
    """
    uri = data or resolve_uri(recipe.data)
    if uri is None:
        raise UserError(
            f"the data set {recipe.data!r} is not found under the folders in TRAJMATCH_DATA; say "
            "where it is with --data"
        )
    identity = {"recipe": name, "device": device, "seed": seed}
    if clock.state.setdefault("identity", identity) != identity:
        raise UserError(
            f"{out} holds a run of {clock.state['identity']}, and {identity} is asked for; give "
            "--out a new folder"
        )
    if (out / "result.json").exists():
        return files.read_json(out / "result.json")
    clock.state["slices"] = clock.state.get("slices", 0) + 1
    clock.save()
    with clock.part("experts"):
        store = experts_in_time(recipe, out / "experts", clock, uri, device, seed)
        say(f"{store.num_experts} experts, {clock.spent:.0f} s")
    with clock.part("distillation"):
        distilled = distilled_in_time(recipe, out, clock, uri, device, seed)
        say(f"{distilled.recipe['iterations']} outer iterations, {clock.spent:.0f} s")
    with clock.part("evaluation"):
        scores = scores_in_time(recipe, distilled, load_dataset(uri), clock, device, seed)
    result = report(name, recipe, store, distilled, scores, clock, device)
    files.write_json(out / "result.json", result)
    return result


def experts_in_time(
    recipe: Recipe, path: Path, clock: Clock, uri: str, device: str, seed: int
) -> Store:
    """Trains experts, as many as the recipe asks for or as the time allows."""
    state, wanted = clock.state, recipe.experts["num_experts"]
    workers = automatic_workers(device, recipe.experts.get("width", ExpertConfig.width))
    done: int = state.setdefault("experts", 0)
    while done < wanted and not state.get("experts_over"):
        items = workers
        if done > 0:
            items = max(workers, int(SECONDS_OF_EXPERTS / clock.seconds_each()))
        target = min(wanted, done + items)
        if not clock.has_time(SHARES["experts"], target - done) and done > 0:
            state["experts_over"] = True  # the distillation knows their number from here on
            break
        settings = {**recipe.experts, "num_experts": target, "data": uri, "device": device}
        train_experts(ExpertConfig(out=path, seed=seed, resume=True, quiet=True, **settings))
        items, done = target - done, target
        state["experts"] = done
        clock.done(items)
    clock.save()
    return Store.open(path)


class _Watch:
    """Hears how far a distillation is, and ends it at a checkpoint when time is up."""

    def __init__(self, clock: Clock, every: int) -> None:
        self._clock, self._every = clock, every
        self._begun = False

    def update(self, done: int, **numbers: float) -> None:
        if self._begun and done % self._every == 0:
            self._clock.done(self._every)
            if not self._clock.has_time(SHARES["distillation"], self._every):
                raise BudgetOver
        self._begun = True


def distilled_in_time(
    recipe: Recipe, out: Path, clock: Clock, uri: str, device: str, seed: int
) -> Artifact:
    """Distils, for as many outer iterations as the recipe asks for or as the time allows."""
    config = DistillConfig(
        experts=out / "experts",
        out=out / "distilled.safetensors",
        data=uri,
        seed=seed,
        device=device,
        checkpoint_every=recipe.checkpoint_every,
        resume=True,
        quiet=True,
        **recipe.distill,
    )
    if config.out.exists():
        return artifact.load(config.out)
    more = clock.has_time(SHARES["distillation"], recipe.checkpoint_every)
    if more or not config.checkpoint_path.exists():
        try:
            return distill(config, _Watch(clock, recipe.checkpoint_every))
        except BudgetOver:
            pass
    # Asking for as many iterations as the checkpoint has makes it the result.
    reached = files.read_metadata(config.checkpoint_path)["iteration"]
    return distill(replace(config, iterations=reached))


def scores_in_time(
    recipe: Recipe, distilled: Artifact, dataset: Dataset, clock: Clock, device: str, seed: int
) -> dict[str, Score]:
    """Trains and tests networks, on the distilled and on random real images in turn (MTT).

    Network by network what :func:`trajmatch.evaluate.evaluate_artifact` does: initialisation,
    batches and random images are the same.
    """
    accuracies: dict[str, list[float]] = clock.state.setdefault(
        "accuracies", {"distilled": [], "random_real": []}
    )
    protocol = Protocol(distilled.lr, distilled.dsa, recipe.eval_epochs)
    test_images = normalise(dataset.test_images, distilled.mean, distilled.std)

    def images_of(kind: str, network: int) -> tuple[Tensor, Tensor]:
        if kind == "distilled":
            return distilled.images, distilled.labels
        draw = generator(seed, "evaluate", network, "random real")
        chosen = random_subset(dataset.train_labels, distilled.ipc, draw)
        images = normalise(dataset.train_images[chosen], distilled.mean, distilled.std)
        return images, dataset.train_labels[chosen]

    for network, kind in product(range(recipe.eval_seeds), accuracies):
        if len(accuracies[kind]) > network:
            continue
        if not clock.has_time(1.0) and network > 0:  # one of each is trained whatever it takes
            break
        accuracy = train_and_test(
            *images_of(kind, network),
            distilled.network,
            protocol.lr,
            test_images,
            dataset.test_labels,
            seed=derive_seed(seed, "evaluate", network),
            epochs=protocol.epochs,
            batch_size=protocol.batch_size,
            dsa=protocol.dsa,
            device=device,
        )
        accuracies[kind].append(accuracy)
        clock.done()
    described = {**protocol.describe(), "network": distilled.network}
    return {kind: Score.of(found, described) for kind, found in accuracies.items()}


def report(
    name: str,
    recipe: Recipe,
    store: Store,
    distilled: Artifact,
    scores: dict[str, Score],
    clock: Clock,
    device: str,
) -> dict[str, Any]:
    """What was done, what it gave, and what was published."""
    counts = {
        "experts": (store.num_experts, recipe.experts["num_experts"]),
        "iterations": (distilled.recipe["iterations"], recipe.distill["iterations"]),
        "networks": (scores["distilled"].seeds, recipe.eval_seeds),
    }
    shortened = tuple(
        f"{done} {what} instead of {wanted}, for want of time"
        for what, (done, wanted) in counts.items()
        if done < wanted
    )
    published = recipe.published
    return {
        "recipe": name,
        "distilled": scores["distilled"].as_dict(),
        "random_real": scores["random_real"].as_dict(),
        "protocol": scores["distilled"].protocol,
        "published": None
        if published is None
        else {
            "mean": published.mean,
            "std": published.std,
            "source": published.source,
            "random_real": {
                "mean": published.random_real[0],
                "std": published.random_real[1],
                "source": published.random_source,
            },
            "remarks": list(published.remarks),
        },
        "departures": [*recipe.departures, *shortened],
        "counts": {what: {"done": done, "wanted": n} for what, (done, n) in counts.items()},
        "seconds": {**clock.state["seconds"], "all": sum(clock.state["seconds"].values())},
        "slices": clock.state["slices"],
        "settings": {
            "experts": store.manifest["recipe"],
            "distillation": distilled.recipe,
            "step_size": distilled.lr,
        },
        "device": device_name(device),
        "versions": distilled.versions,
        "commit": commit(),
        "fingerprint": distilled.fingerprint,
    }


def device_name(device: str) -> str:
    """The name of the GPU, or how many threads of a CPU there were."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU with {torch.get_num_threads()} threads"


def commit() -> str | None:
    """The commit of the source tree, or None without git."""
    describe = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+"]
    try:
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
