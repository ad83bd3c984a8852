"""Settings of a result that differ from its recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from trajmatch.artifact import Artifact
from trajmatch.data.dsa import DSA
from trajmatch.distill.config import DistillSettings
from trajmatch.distill.problem import SINCE_0_1
from trajmatch.distill.setup import default_lr_init
from trajmatch.evaluate.config import EvalSettings
from trajmatch.experts.config import ExpertSettings, kept_epochs
from trajmatch.recipes.recipe import Recipe
from trajmatch.schema import settings_of


class Deviation(NamedTuple):
    """Setting that differs, e.g. ``distill.lr_img``, with its values in recipe and result."""

    name: str
    wanted: Any
    found: Any


def deviations(recipe: Recipe, distilled: Artifact) -> list[Deviation]:
    """Return the fields that both a recipe and a distilled set have and that differ."""
    expert, distill = ExpertSettings(**recipe.expert), DistillSettings(**recipe.distill)
    evaluate = EvalSettings(**recipe.evaluate)
    protocol = evaluate.training_protocol(distilled.lr, distilled.dsa).describe()
    dsa = DSA(expert.dsa).spec
    wanted = {
        "expert": {**settings_of(expert, ExpertSettings), "dsa": dsa},
        # Fill in the values that a run derives for settings missing in the recipe.
        "distill": {
            **settings_of(distill, DistillSettings),
            "dsa": dsa if distill.dsa is None else DSA(distill.dsa).spec,
            "lr_init": distill.lr_init or default_lr_init(distill),
            "max_start_epoch": distill.window_end(kept_epochs(expert.keep, expert.epochs)),
        },
        "evaluate": {"seeds": evaluate.seeds, **protocol},
    }
    # Runs and stores do not record unset optional settings, so add them with their defaults.
    made, experts = distilled.recipe, _entry(distilled.recipe, "experts")
    absent = {name: getattr(DistillSettings(), name) for name, _ in SINCE_0_1}
    made = {**absent, **made} if "lr_img" in made else made
    experts = {"curriculum": None, "drop_easy": None, **experts} if "epochs" in experts else experts
    experts = {**experts, "zca": distilled.zca is not None}
    if isinstance(experts.get("holdout"), dict):
        experts["holdout"] = experts["holdout"].get("fraction")
    if expert.network == "convnet" and distilled.network.get("name") == "ConvNet":
        experts = {**distilled.network, **experts}
    # The latest test score has the protocol that was used.
    score = next((each for each in distilled.scores[::-1] if each.get("split") == "test"), {})
    tested = {**score, **_entry(score, "protocol")} if _entry(score, "protocol") else {}
    alone = distill.objective == "train-and-test" and "experts" not in made
    found = {"expert": {} if alone else experts, "distill": made, "evaluate": tested}
    return [
        Deviation(f"{section}.{name}", value, found[section][name])
        for section, settings in wanted.items()
        for name, value in settings.items()
        if name in found[section] and found[section][name] != value
    ]


def _entry(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a nested dictionary, or an empty one if it is missing."""
    found = content.get(name)
    return found if isinstance(found, dict) else {}
