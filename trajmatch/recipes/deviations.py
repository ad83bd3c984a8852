"""Comparison of the settings of a result with its recipe."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from trajmatch.artifact import Artifact
from trajmatch.data.dsa import DSA
from trajmatch.distill.config import DistillSettings
from trajmatch.distill.objectives.match_trajectory import MatchTrajectory
from trajmatch.distill.objectives.train_and_test import TrainAndTest
from trajmatch.distill.problem import SINCE_0_1, resolved
from trajmatch.distill.setup import default_lr_init
from trajmatch.evaluate.config import EvalSettings
from trajmatch.experts.config import ExpertSettings, kept_epochs
from trajmatch.images import find_parametrisation, is_built_in
from trajmatch.recipes.recipe import Recipe
from trajmatch.schema import settings_of


class Deviation(NamedTuple):
    """Setting with different values in recipe and result, e.g. ``distill.lr_img``."""

    name: str
    wanted: Any
    found: Any


def deviations(recipe: Recipe, distilled: Artifact) -> list[Deviation]:
    """Return the settings that differ from the recipe; skip those not recorded in the result."""
    expert, distill = ExpertSettings(**recipe.expert), DistillSettings(**recipe.distill)
    evaluate = EvalSettings(**recipe.evaluate)
    protocol = evaluate.training_protocol(distilled.lr, distilled.dsa).describe()
    dsa = DSA(expert.dsa).spec
    wanted = {
        "expert": {**settings_of(expert, ExpertSettings), "dsa": dsa},
        # Fill in the values that a run derives for settings missing in the recipe.
        "distill": {
            **settings_of(distill, DistillSettings),
            **_optimisers(distill),
            "dsa": dsa if distill.dsa is None else DSA(distill.dsa).spec,
            "lr_init": distill.lr_init or default_lr_init(distill),
            "max_start_epoch": distill.window_end(kept_epochs(expert.keep, expert.epochs)),
        },
        "evaluate": {"seeds": evaluate.seeds, **protocol},
    }
    # Runs and stores omit optional settings that are not set, so add the defaults. Converted files
    # record no settings of a run ("lr_img", "epochs") and get no defaults either.
    made, experts = distilled.recipe, _entry(distilled.recipe, "experts")
    absent = {name: getattr(DistillSettings(optimiser_img="sgd"), name) for name, _ in SINCE_0_1}
    made = {**absent, **made} if "lr_img" in made else made
    experts = {"curriculum": None, "drop_easy": None, **experts} if "epochs" in experts else experts
    experts = {**experts, "zca": distilled.zca is not None}
    if isinstance(experts.get("holdout"), dict):
        experts["holdout"] = experts["holdout"].get("fraction")
    # Width, depth and norm of a ConvNet are recorded in its spec.
    if expert.network == "convnet" and distilled.network.get("name") == "ConvNet":
        experts = {**distilled.network, **experts}
    # The most recent test score records the protocol with which it was measured.
    score = next((each for each in distilled.scores[::-1] if each.get("split") == "test"), {})
    tested = {**score, **_entry(score, "protocol")} if _entry(score, "protocol") else {}
    # train-and-test needs no experts, so their settings do not matter.
    alone = distill.objective == "train-and-test" and "experts" not in made
    found = {"expert": {} if alone else experts, "distill": made, "evaluate": tested}
    return [
        Deviation(f"{section}.{name}", value, found[section][name])
        for section, settings in wanted.items()
        for name, value in settings.items()
        if found[section].get(name, value) != value
    ]


def _optimisers(settings: DistillSettings) -> dict[str, Any]:
    """Return the settings of the optimisers as a run derives them."""
    if not is_built_in(settings.images):
        return {}  # the defaults are in the user's code
    objective = TrainAndTest if settings.objective == "train-and-test" else MatchTrajectory
    return resolved(settings, objective, find_parametrisation(settings.images))


def _entry(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a nested dictionary, or an empty one if it is missing."""
    found = content.get(name)
    return found if isinstance(found, dict) else {}
