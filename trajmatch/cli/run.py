"""`trajmatch run`: experts, distillation and evaluation of a recipe, in one folder."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trajmatch.distill.config import DistillConfig
from trajmatch.errors import UserError
from trajmatch.evaluate.config import EvalConfig
from trajmatch.experts.config import ExpertConfig
from trajmatch.interruption import seconds
from trajmatch.pipeline import Pipeline, as_far_as_read
from trajmatch.recipes import Recipe
from trajmatch.run_folder import RunFolder

#: Fields of the stages that the run decides for all of them.
_SHARED = {
    "expert": (
        "recipe",
        "out",
        "data",
        "until_epoch",
        "seed",
        "resume",
        "max_time",
        "device",
        "quiet",
    ),
    "distill": (
        "recipe",
        "experts",
        "out",
        "data",
        "seed",
        "resume",
        "max_time",
        "device",
        "quiet",
    ),
    "evaluate": (
        "file",
        "out",
        "data",
        "seed",
        "resume",
        "max_time",
        "device",
        "quiet",
        "json",
    ),
}
_STAGES: dict[str, type[Any]] = {
    "expert": ExpertConfig,
    "distill": DistillConfig,
    "evaluate": EvalConfig,
}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Run a recipe from real images to accuracy: experts, distillation and evaluation.

    Flags of the stages need their prefix only where two stages have the same: --ipc 5 is
    --distill.ipc 5, but --expert.epochs and --evaluate.epochs differ.
    """

    recipe: str
    """The recipe, e.g. cpu/own/ipc1 (`trajmatch recipes` lists them), or a file of your own, ending
    in .toml."""
    out: Path
    """Folder for the experts, the distilled set, the pictures, summary.json and report.html."""
    experts: Path | None = None
    """Store of experts that are there already, e.g. of an earlier run: they are used as they are,
    and none are trained. Default: train them as the recipe says."""
    full_experts: bool = False
    """Train the experts to their last epoch, not only as far as the distillation reads them."""
    data: str | None = None
    """Data set, e.g. cifar10:ROOT or imagefolder:PATH. Default: that of the recipe, looked for
    where TRAJMATCH_DATA points."""
    seed: int = 0
    """Seed of everything random."""
    device: str = "auto"
    """Device: cpu, cuda, cuda:N, or auto, which is a GPU where one can be used, else the CPU."""
    resume: bool = False
    """Go on with an interrupted run."""
    max_time: str | None = None
    """Stop with a checkpoint after so long, e.g. 90m or 1h30m (exit status 75), for --resume."""
    quiet: bool = False
    """Print nothing but errors."""

    def __post_init__(self) -> None:
        """Checks what the stages do not.

        Raises:
            UserError: ``max_time`` is no duration.
        """
        if self.max_time is not None:
            seconds(self.max_time)


def run(argv: list[str]) -> int:
    """Runs the command.

    Args:
        argv: Arguments after the command's name.

    Returns:
        The exit status.
    """
    from trajmatch.cli.arguments import recipe_of

    recipe = recipe_of(argv) or Recipe(name="")
    config, stages = _parse(argv, recipe)

    from trajmatch import interruption
    from trajmatch.cli.demo import print_summary
    from trajmatch.cli.device import with_device
    from trajmatch.cli.health import print_health
    from trajmatch.cli.progress import Progress
    from trajmatch.data.sources import of_recipe
    from trajmatch.pipeline import run_pipeline

    config = with_device(config)
    data = of_recipe(config.data, recipe.data, recipe.name)
    pipeline = pipeline_of(replace(config, data=data), stages)
    pipeline = replace(pipeline, command=shlex.join(["trajmatch", "run", *argv]))
    expert = pipeline.expert
    if expert is not None and expert.trained_epochs < expert.epochs and not config.quiet:
        print(
            f"experts are trained for the first {expert.trained_epochs} of {expert.epochs} epochs, "
            "as far as the distillation reads them (--full-experts trains them whole)",
            file=sys.stderr,
        )
    with interruption.time_limit(config.max_time):
        summary = run_pipeline(
            pipeline,
            lambda total, title: Progress(total, title, config.quiet),
            None if config.quiet else print_health,
        )
    if not config.quiet:
        print_summary(summary, pipeline.folder)
    return 0


def pipeline_of(config: RunConfig, stages: Mapping[str, Mapping[str, Any]]) -> Pipeline:
    """The configurations of the stages.

    Args:
        config: What they share.
        stages: The other fields of ``expert``, ``distill`` and ``evaluate``.
    """
    folder = RunFolder(config.out)
    shared: dict[str, Any] = {
        "data": config.data,
        "seed": config.seed,
        "device": config.device,
        "quiet": True,
    }
    resumed: dict[str, Any] = {**shared, "recipe": config.recipe, "resume": config.resume}
    distill = DistillConfig(
        experts=config.experts or folder.store,
        out=folder.artifact,
        **resumed,
        **stages["distill"],
    )
    evaluate = EvalConfig(file=folder.artifact, **shared, **stages["evaluate"])
    expert = None
    if config.experts is None:
        expert = ExpertConfig(out=folder.store, **resumed, **stages["expert"])
        ends = evaluate.k_center_store and evaluate.k_center_store.resolve()
        if not config.full_experts and ends != folder.store.resolve():
            expert = as_far_as_read(expert, distill)
    return Pipeline(folder, expert, distill, evaluate)


def _parse(argv: list[str], recipe: Recipe) -> tuple[RunConfig, dict[str, dict[str, Any]]]:
    """The shared fields, and those of each stage: the recipe's, unless a flag has another value."""
    from trajmatch.cli.arguments import Section, read

    defaults = {name: getattr(recipe, name) for name in _STAGES}
    sections = [
        Section(RunConfig, {"data": recipe.data or None}),
        *(
            Section(config, defaults[name], (), _SHARED[name], name, _fields_of_one(name))
            for name, config in _STAGES.items()
        ),
    ]
    own, *given = read(sections, argv, "trajmatch run")
    stages = dict(zip(_STAGES, given, strict=True))
    if own.get("experts") is not None and stages["expert"]:
        flag = "--" + next(iter(stages["expert"])).replace("_", "-")
        raise UserError(
            f"{flag} is for the training of experts, and --experts has some that are trained; "
            "leave one of them out"
        )
    config = RunConfig(**{"data": recipe.data or None, **own})
    return config, {name: {**defaults[name], **stages[name]} for name in _STAGES}


def _fields_of_one(stage: str) -> list[str]:
    """Fields that no other stage and not the run itself has: their flag needs no prefix."""
    others = {field.name for field in dataclasses.fields(RunConfig)}
    for name, config in _STAGES.items():
        if name != stage:
            others |= {f.name for f in dataclasses.fields(config) if f.name not in _SHARED[name]}
    return [field.name for field in dataclasses.fields(_STAGES[stage]) if field.name not in others]
