"""From raw data to accuracy within a budget of time, on one device and without a network.

    python benchmarks/reproduce.py mtt/cifar10/ipc10 --data cifar10:ROOT --out runs/ipc10
    python benchmarks/reproduce.py mtt/cifar10/ipc10 --data cifar10:ROOT --out runs/ipc10 \
        --budget 25m --slice 9m      # as often as it ends with status 75
    python benchmarks/reproduce.py benchmarks/smoke.toml --device cpu --out runs/smoke
    python benchmarks/reproduce.py mtt/cifar10/ipc1 --data cifar10:ROOT --experts STORE \
        --test-every 500 --budget 9h --device cpu --out runs/ipc1

Takes any recipe that ``trajmatch run`` takes. Trains as many experts and runs as many outer
iterations as fit into the budget, up to what the recipe says, and evaluates the distilled and
random real images by its protocol. All that it did, with times, counts, departures and
accuracies beside the published ones, is in ``result.json``. With ``--slice`` a call ends in time
with its state on disk, and the same command goes on. With ``--experts`` it trains none. With
``--init-from``, the first images and labels come from a distilled set. DATM's come from experts
that were trained to the end, but its matches read only the first epochs: a few whole experts can
make that set, and many short ones be matched. With ``--test-every``, the images are tested every
so many iterations, with as many networks as the recipe evaluates with, and those that are best on
the test set are the result, as in the papers' tables. ``result.json`` has all of these tests,
including the one after the last iteration.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench.program import program
from published import Published, distilled_baseline, random_baseline
from slices import COME_AGAIN, SliceOver, Slices, duration

from trajmatch import files
from trajmatch.artifact import Artifact
from trajmatch.cli.run import RunConfig, pipeline_of
from trajmatch.data import resolve_uri
from trajmatch.data.sources import of_recipe
from trajmatch.errors import UserError
from trajmatch.evaluate import EvalConfig, evaluate_artifact
from trajmatch.experts import ExpertConfig, Store
from trajmatch.recipes import Recipe, find_recipe

#: Shares of the budget after which experts and distillation end; the rest is for the evaluation.
SHARES = {"experts": 0.35, "distillation": 0.85}
#: Outer iterations after which the time is looked at.
CHECKPOINT_EVERY = 20
#: Settings of the evaluation that the tests during a distillation share with it.
NETWORKS = ("protocol", "epochs", "seeds")


@program
def main(argv: Sequence[str] | None) -> int:
    """Run a recipe; the status is 0, 2 for a mistake of the user, or 75."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", help="a name that `trajmatch recipes` lists, or a .toml file")
    parser.add_argument("--budget", type=duration, default=1500.0, help="for everything (25m)")
    parser.add_argument("--slice", type=duration, help="time for this call (no limit)")
    parser.add_argument("--data", help="data set, e.g. cifar10:ROOT (by TRAJMATCH_DATA)")
    parser.add_argument("--experts", type=Path, help="a store to take instead of training one")
    parser.add_argument("--init-from", type=Path, help="a distilled set to begin with")
    parser.add_argument("--test-every", type=int, help="iterations between tests; keep the best")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder for all that is written")
    given = parser.parse_args(argv)
    recipe = find_recipe(given.recipe)
    files.check_writable(given.out)
    slices = Slices(given.out / "state.json", given.budget, given.slice)
    try:
        settings = given.data, given.device, given.seed, given.experts, given.test_every
        result = reproduce(recipe, given.out, slices, *settings, given.init_from)
    except SliceOver:
        print(f"{slices.spent:.0f} of {given.budget:.0f} s are spent; the same command goes on")
        return COME_AGAIN
    print(as_text(result))
    return 0


def reproduce(
    recipe: Recipe,
    out: Path,
    slices: Slices,
    data: str | None = None,
    device: str = "cpu",
    seed: int = 0,
    experts: Path | None = None,
    test_every: int | None = None,
    init_from: Path | None = None,
) -> dict[str, Any]:
    """Run a recipe, or what earlier calls left of it.

    Args:
        recipe: The recipe.
        out: Folder for experts, images and ``result.json``.
        slices: State and budget.
        data: URI of the data set; None: it is found by its name.
        device: Where to compute.
        seed: Seed of everything random.
        experts: Store to take instead of training experts.
        test_every: Iterations between tests, of which the best decides the result. None: no tests,
            and the result is the last iterate.
        init_from: Distilled set with the first images and labels. None: as the recipe says.

    Returns:
        The content of ``result.json``.

    Raises:
        SliceOver: The time of this call is over; the same call goes on.
        UserError: Recipe, data or folder cannot be used, or the folder holds another run.
    """
    distill = {**recipe.distill, "checkpoint_every": CHECKPOINT_EVERY}
    if test_every is not None:
        defaults = {name: getattr(EvalConfig, name) for name in NETWORKS}
        tests = {f"eval_{name}": recipe.evaluate.get(name, defaults[name]) for name in NETWORKS}
        distill |= {"select": "test-max", "eval_every": test_every, **tests}
    sections = {"expert": recipe.expert, "distill": distill, "evaluate": recipe.evaluate}
    identity = {"recipe": recipe.name, "device": device, "seed": seed, **sections}
    given = {"experts": experts and str(experts), "init_from": init_from and str(init_from)}
    slices.begin({**identity, **given}, device)
    if (out / "result.json").exists():
        return files.read_json(out / "result.json")
    uri = of_recipe(data, recipe.data) or find_data(recipe)
    shared = {"data": uri, "seed": seed, "device": device, "resume": True}
    run = RunConfig(recipe=recipe.name, out=out, experts=experts, **shared)
    sections["distill"] = {**distill, "init_from": init_from}
    pipeline = pipeline_of(run, sections)
    if pipeline.expert is not None:
        store = slices.experts("experts", pipeline.expert, SHARES["experts"])
    else:
        assert pipeline.distill.experts is not None
        store = Store.open(pipeline.distill.experts)
    distilled = slices.distil("distillation", pipeline.distill, SHARES["distillation"])
    scores = evaluate(pipeline.evaluate, slices)
    counts = {
        "experts": (store.num_experts, recipe.expert.get("num_experts", ExpertConfig.num_experts)),
        "iterations": (distilled.recipe["iterations"], pipeline.distill.iterations),
        "networks": (scores["distilled"]["seeds"], pipeline.evaluate.seeds),
    }
    published = {"distilled": distilled_baseline(recipe), "random_real": random_baseline(recipe)}
    state = slices.state
    result = {
        "recipe": recipe.name,
        **{name: scores[name] for name in ("distilled", "random_real", "protocol")},
        "selection": distilled.selection,
        "tests": [
            {name: score[name] for name in ("iteration", "mean", "std", "seeds")}
            for score in distilled.scores
        ],
        "published": {name: each and asdict(each) for name, each in published.items()},
        # A note on the choice of the last iterate does not hold with `test_every`.
        "notes": [note for note in recipe.notes if test_every is None or "--select" not in note],
        "departures": departures(recipe, distilled, store, counts),
        "counts": {what: {"done": done, "wanted": n} for what, (done, n) in counts.items()},
        "seconds": {**state["seconds"], "all": sum(state["seconds"].values())},
        "slices": state["calls"],
        "settings": {
            "experts": store.manifest["recipe"],
            "distillation": distilled.recipe,
            "step_size": distilled.lr,
        },
        "device": state["device"],
        "versions": distilled.versions,
        "commits": state["commits"],
        "fingerprint": distilled.fingerprint,
    }
    files.write_json(out / "result.json", result)
    return result


def find_data(recipe: Recipe) -> str:
    """Return the URI of the recipe's data set, by its name.

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


def evaluate(config: EvalConfig, slices: Slices) -> dict[str, Any]:
    """Train and test as many networks as there is time for, one more on each set at a time."""
    folder = config.file.parent / "evaluation"
    config = replace(config, out=folder, resume=True, quiet=True)
    config = replace(config, experts=None, distilled_hard=False)  # as far as it is published
    done: int = slices.state.get("networks", 0)
    for piece in slices.pieces("evaluation", done, config.seeds):
        evaluate_artifact(replace(config, seeds=piece.stop))
        slices.state["networks"] = piece.stop
    return files.read_json(folder / "result.json")


def departures(
    recipe: Recipe, distilled: Artifact, store: Store, counts: dict[str, tuple[int, int]]
) -> list[str]:
    """Say what is not as published.

    Args:
        recipe: As it was published.
        distilled: The result.
        store: The experts.
        counts: What was done and what was wanted of everything that is counted.
    """
    data = distilled.dataset_name
    wanted_data, trained = recipe.data or data, store.manifest["recipe"]
    return [
        *([] if data == wanted_data else [f"the data set is {data!r} instead of {wanted_data!r}"]),
        *([f"begun with {init}"] if (init := distilled.recipe["init"]).startswith("file ") else []),
        *(
            f"experts with {name} {trained[name]} instead of {value}"
            for name, value in recipe.expert.items()
            if name in trained and trained[name] != value
        ),
        *(
            f"{done} {what} instead of {wanted}"
            for what, (done, wanted) in counts.items()
            if done < wanted
        ),
    ]


def as_text(result: dict[str, Any]) -> str:
    """Format the result for a reader."""
    lines = []
    for title, name in (("random real", "random_real"), ("distilled", "distilled")):
        score, published = result[name], result["published"][name]
        told = "no published number" if published is None else f"published {Published(**published)}"
        lines.append(
            f"{title:12} {score['mean']:5.1f} +- {score['std']:.1f} % "
            f"({score['seeds']} networks); {told}"
        )
    lines += [
        f"after iteration {each['iteration']}: {each['mean']:.1f} +- {each['std']:.1f} % "
        f"({each['seeds']} networks)"
        for each in result["tests"]
    ]
    lines += [f"note: {note}" for note in result["notes"]]
    lines += [f"but: {departure}" for departure in result["departures"]]
    lines.append(f"{result['seconds']['all']:.0f} s in {result['slices']} calls")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
