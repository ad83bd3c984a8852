"""What of a recipe is done within a budget, and how that differs from what was published."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from trajmatch.distill import DistillConfig
from trajmatch.errors import UserError
from trajmatch.experts import ExpertConfig
from trajmatch.recipes import Recipe

#: Shares of the budget after which experts and distillation end; the rest is for the evaluation.
SHARES = {"experts": 0.35, "distillation": 0.85}

#: Iterations after which the time is looked at, where the recipe does not say it.
CHECKPOINT_EVERY = 20

#: What a recipe may say of the evaluation: how networks are trained, and how many.
_EVALUATION = ("protocol", "epochs", "equal_steps", "batch_size", "seeds")


@dataclass(frozen=True)
class Plan:
    """A recipe as it is reproduced.

    Attributes:
        recipe: What is done, if there is time for all of it.
        departures: What is not as published whatever the budget.
    """

    recipe: Recipe
    departures: tuple[str, ...] = ()


def plan(recipe: Recipe) -> Plan:
    """Leaves out the epochs of the experts that nothing in the recipe needs.

    Args:
        recipe: As it was published.

    Returns:
        What to do.

    Raises:
        UserError: The recipe asks for an evaluation that a reproduction does not do.
    """
    for field in recipe.evaluate:
        if field not in _EVALUATION:
            raise UserError(
                f"recipe {recipe.name} sets {field} in [evaluate], but a reproduction tests the "
                "experts' network on distilled and random real images alone; leave it out, and "
                "evaluate with `trajmatch eval` afterwards"
            )
    recipe = replace(recipe, distill={"checkpoint_every": CHECKPOINT_EVERY, **recipe.distill})
    experts = ExpertConfig(out=Path("experts"), **recipe.expert)
    distill = DistillConfig(experts=Path("experts"), out=Path("distilled"), **recipe.distill)
    used = distill.max_start_epoch - 1 + distill.expert_epochs
    if used == experts.epochs or needs_all_epochs(experts, distill):
        return Plan(recipe)
    shorter = {**recipe.expert, "epochs": used, "keep": f"{distill.min_start_epoch}-{used}"}
    departure = (
        f"experts are trained for {used} epochs instead of {experts.epochs}: no segment goes "
        "further, and nothing else depends on the number"
    )
    return Plan(replace(recipe, expert=shorter), (departure,))


def needs_all_epochs(experts: ExpertConfig, distill: DistillConfig) -> bool:
    """Whether anything but the end of a segment depends on how many epochs experts have.

    Chosen first images and soft labels ask experts after their last epoch, and the learning rate
    decays in the middle.
    """
    asked = distill.init in ("correct", "representative") or distill.labels == "soft"
    return asked or experts.lr_decay != 1
