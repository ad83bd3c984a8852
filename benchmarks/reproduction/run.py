"""Raw data to accuracy: experts, distillation, evaluation, as much of each as the budget allows."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from reproduction.baselines import distilled_baseline, random_baseline
from reproduction.clock import Clock
from reproduction.plan import SHARES, Plan, plan
from trajmatch import artifact, files
from trajmatch.artifact import Artifact
from trajmatch.cli.run import RunConfig, pipeline_of
from trajmatch.data import Dataset, load_dataset, resolve_uri
from trajmatch.data.sources import of_recipe
from trajmatch.distill import DistillConfig, distill
from trajmatch.errors import UserError
from trajmatch.evaluate import EvalConfig, Outcome, Score, TrainingSets, train_fresh
from trajmatch.experts import ExpertConfig, train_experts
from trajmatch.experts.store import Store
from trajmatch.experts.train import automatic_workers
from trajmatch.pipeline import Pipeline
from trajmatch.random import derive_seed
from trajmatch.recipes import Recipe

#: Experts are trained so many seconds at a time, since every time begins with reading the data.
SECONDS_OF_EXPERTS = 20.0

#: What networks are trained on in turn, by the names that :class:`TrainingSets` has for them.
SETS = ("distilled", "random_real")


class BudgetOver(Exception):
    """The distillation's share of the budget is spent."""


def reproduce(
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
        UserError: Recipe, data or folder cannot be used, or the folder holds another run.
    """
    planned = plan(recipe)
    check_identity(planned.recipe, out, clock, device, seed)
    if (out / "result.json").exists():
        return files.read_json(out / "result.json")
    uri = of_recipe(data, recipe.data) or find_data(recipe)
    pipeline = pipeline_of(
        RunConfig(recipe=recipe.name, out=out, data=uri, seed=seed, device=device, resume=True),
        sections(planned.recipe),
    )
    clock.state["slices"] = clock.state.get("slices", 0) + 1
    clock.save()
    with clock.part("experts"):
        store = experts_in_time(pipeline.expert, clock)
        say(f"{store.num_experts} experts, {clock.spent:.0f} s")
    with clock.part("distillation"):
        distilled = distilled_in_time(pipeline.distill, clock)
        say(f"{distilled.recipe['iterations']} outer iterations, {clock.spent:.0f} s")
    with clock.part("evaluation"):
        scores = scores_in_time(pipeline.evaluate, distilled, load_dataset(uri), clock)
    result = report(planned, pipeline, store, distilled, scores, clock)
    files.write_json(out / "result.json", result)
    return result


def sections(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """The fields of the three stages."""
    return {name: dict(getattr(recipe, name)) for name in ("expert", "distill", "evaluate")}


def check_identity(recipe: Recipe, out: Path, clock: Clock, device: str, seed: int) -> None:
    """Makes sure that the state is of this run and of no other.

    Raises:
        UserError: It is of another one; what differs is named.
    """
    asked = {"recipe": recipe.name, "device": device, "seed": seed, **sections(recipe)}
    identity = json.loads(json.dumps(asked))  # as the state has it, with lists for tuples
    found = clock.state.setdefault("identity", identity)
    differing = [name for name in identity if found.get(name) != identity[name]]
    if differing:
        raise UserError(
            f"{out} holds a run with another {', '.join(differing)}; give --out a new folder"
        )


def find_data(recipe: Recipe) -> str:
    """The URI of the recipe's data set, by its name.

    Raises:
        UserError: The recipe is for any data, or the data set is not found.
    """
    if not recipe.data:
        raise UserError(f"recipe {recipe.name} is for any data set; say which with --data")
    uri = resolve_uri(recipe.data)
    if uri is None:
        raise UserError(
            f"the data set {recipe.data!r} is not found under the folders in TRAJMATCH_DATA; say "
            "where it is with --data"
        )
    return uri


def experts_in_time(config: ExpertConfig, clock: Clock) -> Store:
    """Trains experts, as many as the configuration asks for or as the time allows."""
    state, wanted = clock.state, config.num_experts
    workers = automatic_workers(config.device, config.width)
    done: int = state.setdefault("experts", 0)
    while done < wanted and not state.get("experts_over"):
        items = workers
        if done > 0:
            items = max(workers, int(SECONDS_OF_EXPERTS / clock.seconds_each()))
        target = min(wanted, done + items)
        if not clock.has_time(SHARES["experts"], target - done) and done > 0:
            state["experts_over"] = True  # the distillation knows their number from here on
            break
        train_experts(replace(config, num_experts=target))
        items, done = target - done, target
        state["experts"] = done
        clock.done(items)
    clock.save()
    return Store.open(config.out)


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


def distilled_in_time(config: DistillConfig, clock: Clock) -> Artifact:
    """Distils, for as many outer iterations as asked for or as the time allows."""
    if config.out.exists():
        return artifact.load(config.out)
    more = clock.has_time(SHARES["distillation"], config.checkpoint_every)
    if more or not config.checkpoint_path.exists():
        try:
            return distill(config, _Watch(clock, config.checkpoint_every))
        except BudgetOver:
            pass
    # Asking for as many iterations as the checkpoint has makes it the result.
    reached = files.read_metadata(config.checkpoint_path)["iteration"]
    return distill(replace(config, iterations=reached))


def scores_in_time(
    config: EvalConfig, distilled: Artifact, dataset: Dataset, clock: Clock
) -> dict[str, Score]:
    """Trains and tests networks, on the distilled and on random real images in turn.

    Network by network what :func:`trajmatch.evaluate.evaluate_artifact` does: initialisation,
    batches and random images are the same.
    """
    outcomes: dict[str, list[dict[str, Any]]] = clock.state.setdefault(
        "outcomes", {name: [] for name in SETS}
    )
    protocol = config.training_protocol(distilled.lr, distilled.dsa)
    sets = TrainingSets(distilled, dataset, config.seed)
    test_images = distilled.preprocessing.apply(dataset.test_images)
    for network, name in product(range(config.seeds), SETS):
        if len(outcomes[name]) > network:
            continue
        if not clock.has_time(1.0) and network > 0:  # one of each is trained whatever it takes
            break
        outcome = train_fresh(
            *getattr(sets, name)(network),
            distilled.network,
            protocol,
            test_images,
            dataset.test_labels,
            seed=derive_seed(config.seed, "evaluate", network),
            device=config.device,
        )
        outcomes[name].append(asdict(outcome))
        clock.done()
    described = {**protocol.describe(), "network": distilled.network}
    return {
        name: Score.of_outcomes([Outcome(**each) for each in found], described)
        for name, found in outcomes.items()
    }


def report(
    planned: Plan,
    pipeline: Pipeline,
    store: Store,
    distilled: Artifact,
    scores: dict[str, Score],
    clock: Clock,
) -> dict[str, Any]:
    """What was done, what it gave, and what was published."""
    counts = {
        "experts": (store.num_experts, pipeline.expert.num_experts),
        "iterations": (distilled.recipe["iterations"], pipeline.distill.iterations),
        "networks": (scores["distilled"].seeds, pipeline.evaluate.seeds),
    }
    published = {
        "distilled": distilled_baseline(planned.recipe),
        "random_real": random_baseline(planned.recipe),
    }
    return {
        "recipe": planned.recipe.name,
        **{name: score.as_dict() for name, score in scores.items()},
        "protocol": scores["distilled"].protocol,
        "published": {name: each and asdict(each) for name, each in published.items()},
        "notes": list(planned.recipe.notes),
        "departures": departures(planned, distilled.dataset_name, counts),
        "counts": {what: {"done": done, "wanted": n} for what, (done, n) in counts.items()},
        "seconds": {**clock.state["seconds"], "all": sum(clock.state["seconds"].values())},
        "slices": clock.state["slices"],
        "settings": {
            "experts": store.manifest["recipe"],
            "distillation": distilled.recipe,
            "step_size": distilled.lr,
        },
        "device": device_name(pipeline.expert.device),
        "versions": distilled.versions,
        "commit": commit(),
        "fingerprint": distilled.fingerprint,
    }


def departures(planned: Plan, data: str, counts: dict[str, tuple[int, int]]) -> list[str]:
    """What is not as published.

    Args:
        planned: What was to be done.
        data: Name of the data set.
        counts: What was done and what was wanted of everything that is counted.
    """
    wanted_data = planned.recipe.data or data
    return [
        *([] if data == wanted_data else [f"the data set is {data!r} instead of {wanted_data!r}"]),
        *planned.departures,
        *(
            f"{done} {what} instead of {wanted}, for want of time"
            for what, (done, wanted) in counts.items()
            if done < wanted
        ),
    ]


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
