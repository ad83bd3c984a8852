"""Settings of a result that are not those of its recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NamedTuple

from trajmatch.artifact import Artifact
from trajmatch.data.dsa import DSA
from trajmatch.distill.config import DistillSettings
from trajmatch.distill.problem import DEFAULT_LR_INIT
from trajmatch.evaluate.config import EvalSettings
from trajmatch.experts.config import ConvNetSettings, ExpertSettings, kept_epochs
from trajmatch.recipes.recipe import Recipe
from trajmatch.schema import settings_of


class Deviation(NamedTuple):
    """A setting that differs.

    Attributes:
        name: The field, with its section: ``expert.epochs`` or ``distill.lr_img``.
        wanted: Its value in the recipe, or the default where the recipe has none.
        found: Its value in the result.
    """

    name: str
    wanted: Any
    found: Any


def deviations(recipe: Recipe, distilled: Artifact) -> list[Deviation]:
    """Compare what made a distilled set with a recipe, field by field.

    Args:
        recipe: The recipe.
        distilled: The set.

    Returns:
        The fields that both have and that differ, experts first.
    """
    expert, distill = ExpertSettings(**recipe.expert), DistillSettings(**recipe.distill)
    experts = distilled.recipe.get("experts")
    found = experts if isinstance(experts, dict) else {}
    found = {**found, "zca": distilled.zca is not None}
    if isinstance(found.get("holdout"), dict):
        found["holdout"] = found["holdout"].get("fraction")
    if expert.network == "convnet" and distilled.network.get("name") == "ConvNet":
        found |= {each.name: distilled.network.get(each.name) for each in fields(ConvNetSettings)}
    wanted = {name: getattr(expert, name) for name in found if hasattr(expert, name)}
    wanted["dsa"] = DSA(expert.dsa).spec
    # The run chooses the settings that a recipe leaves open.
    settings = {
        **settings_of(distill, DistillSettings),
        "lr_init": distill.lr_init or DEFAULT_LR_INIT,
        "max_start_epoch": distill.window_end(kept_epochs(expert.keep, expert.epochs)),
    }
    settings["dsa"] = wanted["dsa"] if distill.dsa is None else DSA(distill.dsa).spec
    return [
        *_differing("expert", wanted, found),
        *_differing("distill", settings, distilled.recipe),
        *_of_evaluation(recipe, distilled),
    ]


def _of_evaluation(recipe: Recipe, distilled: Artifact) -> list[Deviation]:
    """Compare the protocol of the last score on the test set, where there is one."""
    found = next((each for each in distilled.scores[::-1] if each.get("split") == "test"), {})
    protocol = found.get("protocol")
    if not isinstance(protocol, dict):
        return []
    config = EvalSettings(**recipe.evaluate)
    wanted = config.training_protocol(distilled.lr, distilled.dsa).describe()
    return _differing(
        "evaluate",
        {"seeds": config.seeds, **wanted},
        {"seeds": found.get("seeds", config.seeds), **protocol},
    )


def _differing(
    section: str, wanted: Mapping[str, Any], found: Mapping[str, Any]
) -> list[Deviation]:
    return [
        Deviation(f"{section}.{name}", value, found[name])
        for name, value in wanted.items()
        if name in found and found[name] != value
    ]
