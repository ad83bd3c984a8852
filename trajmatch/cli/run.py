"""`trajmatch run`: trains experts, distils and evaluates as a recipe says, in one folder."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trajmatch.cli.eval import robust_line, score_cells, score_heads
from trajmatch.cli.output import aligned
from trajmatch.distill.config import DistillConfig, DistillSettings
from trajmatch.errors import UserError
from trajmatch.evaluate.config import EvalConfig
from trajmatch.evaluate.sets import IN_TABLES
from trajmatch.experts.config import ExpertConfig, NetworkSettings
from trajmatch.recipes import Recipe
from trajmatch.recipes.recipe import SECTIONS
from trajmatch.run_folder import RunFolder
from trajmatch.run_options import RunOptions
from trajmatch.schema import flag, settings_of

if TYPE_CHECKING:
    from trajmatch.pipeline import Pipeline

_STAGES = {name: config for name, (_, config) in SECTIONS.items()}


@dataclass(frozen=True, kw_only=True)
class RunConfig(RunOptions):
    """Run a recipe from real images to accuracy: experts, distillation and evaluation.

    A flag needs the prefix of its stage only if two stages have that flag: --ipc 5 is
    --distill.ipc 5, but --expert.epochs and --evaluate.epochs differ.
    """

    recipe: str
    """The recipe, e.g. cpu/own/ipc1 (`trajmatch recipes` lists them), or the path of your own
    recipe (.toml)."""
    out: Path
    """Folder for the experts, the distilled set, the pictures, summary.json and report.html."""
    experts: Path | None = None
    """Existing expert store, e.g. of an earlier run, to use instead of training experts. Default:
    train them as the recipe says."""
    full_experts: bool = False
    """Train the experts to their last epoch, even if the distillation does not read the last
    epochs."""
    data: str | None = None
    """Data set, e.g. cifar10:ROOT or imagefolder:PATH. Default: the recipe's data set, searched for
    in TRAJMATCH_DATA."""
    quiet: bool = False
    """Print nothing but errors."""


#: Fields of the network, which both the experts and a distillation without experts have.
_SHARED = {field.name for field in fields(NetworkSettings)}

#: Fields that the run itself sets in every stage, so that the stages have no flags for them.
_DECIDED = {field.name for field in fields(RunConfig)} | {"until_epoch", "file", "json"}


def run(argv: list[str]) -> None:
    """Run the command with its arguments."""
    from trajmatch.cli.arguments import recipe_of

    run_recipe(recipe_of(argv), argv, "run")


def run_recipe(recipe: Recipe, argv: list[str], command: str) -> None:
    """Run a recipe for ``trajmatch COMMAND``; flags in ``argv`` override its settings."""
    config, stages = _parse(argv, recipe, command)

    # Import these, and torch with them, only now: --help and wrong arguments do not need them.
    from trajmatch import interruption
    from trajmatch.cli.device import with_device
    from trajmatch.cli.health import print_health
    from trajmatch.cli.progress import Progress
    from trajmatch.data.sources import of_recipe
    from trajmatch.pipeline import run_pipeline

    config = with_device(config)
    data = of_recipe(config.data, recipe.data, recipe.name)
    pipeline = pipeline_of(replace(config, data=data), stages)
    pipeline = replace(pipeline, command=shlex.join(["trajmatch", command, *argv]))
    expert = pipeline.expert
    if expert is not None and expert.trained_epochs < expert.epochs and not config.quiet:
        print(
            f"experts are trained for only {expert.trained_epochs} of {expert.epochs} epochs, "
            "because the distillation reads no later ones (--full-experts trains all "
            f"{expert.epochs})",
            file=sys.stderr,
        )
    with interruption.time_limit(config.max_time):
        summary = run_pipeline(
            pipeline,
            lambda total, title: Progress(total, title, config.quiet),
            None if config.quiet else print_health,
        )
    if not config.quiet:
        _print_summary(summary, pipeline.folder)


def _print_summary(summary: dict[str, Any], folder: RunFolder) -> None:
    """Print the scores of a run and the paths of its output files."""
    print(table(summary))
    if summary.get("robust"):
        print(robust_line(summary["robust"]))
    from trajmatch.evaluate.scores import difference_error

    for name, labels in (("random_real", ""), ("random_real_soft", " with soft labels")):
        if name in summary and "errors" not in summary[name]:
            both = summary["distilled"], summary[name]
            print(
                f"{both[0]['mean'] - both[1]['mean']:+.1f} points over random real images{labels} "
                f"(standard error {difference_error(summary['test_images'], *both):.1f}, from "
                f"{summary['test_images']} test images and {both[0]['seeds']} networks)"
            )
    print(f"{summary['seconds']:.0f} s in all")
    for path, what in folder.contents():
        if path.exists():
            print(f"{path}: {what}")


def table(summary: dict[str, Any]) -> str:
    """Return a table of the scores in a result of :func:`trajmatch.pipeline.run_pipeline`."""
    sets = summary["sets"]
    rows = [
        (*score_cells(name, sets[name], summary[name]), str(summary[name]["seeds"]))
        for name in IN_TABLES
        if name in sets
    ]
    return aligned((*score_heads(summary["distilled"]), "networks"), *rows, rule=True)


def pipeline_of(config: RunConfig, stages: Mapping[str, Mapping[str, Any]]) -> Pipeline:
    """Return the configurations of all stages.

    ``config`` has the settings that the stages share; ``stages`` has the other fields of
    ``expert``, ``distill`` and ``evaluate``.
    """
    from trajmatch.pipeline import Pipeline, as_far_as_read

    folder = RunFolder(config.out)
    # The run itself limits the time of all stages together and shows their progress.
    shared = {**settings_of(config, RunOptions), "max_time": None, "quiet": True}
    resumed = {**shared, "recipe": config.recipe}
    experts = config.experts or (folder.store if _needs_experts(stages["distill"]) else None)
    distill = DistillConfig(experts=experts, out=folder.artifact, **resumed, **stages["distill"])
    # If the experts label the distilled images, they also label the real images of the baselines.
    soft = distill.labels == "soft" and distill.init_from is None
    evaluation = {"experts": distill.experts if soft else None, **stages["evaluate"]}
    evaluate = EvalConfig(file=folder.artifact, **shared, **evaluation)
    expert = None
    if experts is not None and config.experts is None:
        expert = ExpertConfig(out=folder.store, **resumed, **stages["expert"])
        # k-center and herding measure distances with the last epoch of a store. If that is the
        # run's own store, train the experts to the end.
        ends = evaluate.k_center_store and evaluate.k_center_store.resolve()
        if not config.full_experts and ends != folder.store.resolve():
            expert = as_far_as_read(expert, distill)
    return Pipeline(folder, expert, distill, evaluate)


def _parse(
    argv: list[str], recipe: Recipe, command: str
) -> tuple[RunConfig, dict[str, dict[str, Any]]]:
    """Return the shared settings and the fields of each stage; flags override the recipe."""
    from trajmatch.cli.arguments import Section, read

    defaults = {name: getattr(recipe, name) for name in _STAGES}
    own_defaults = {"data": recipe.data or None}
    hidden = []
    if command == "demo":
        own_defaults["recipe"], hidden = recipe.name, ["recipe"]
    sections = [
        Section(RunConfig, own_defaults, (), hidden),
        *(
            Section(config, defaults[name], (), _DECIDED, name, _fields_of_one(name))
            for name, config in _STAGES.items()
        ),
    ]
    own, *given = read(sections, argv, f"trajmatch {command}")
    stages = dict(zip(_STAGES, given, strict=True))
    chosen = {name: {**defaults[name], **stages[name]} for name in _STAGES}
    has_experts = own.get("experts") is not None
    # Reject flags for the training of experts if the run trains none: they would be ignored.
    if stages["expert"] and (has_experts or not _needs_experts(chosen["distill"])):
        name = next(iter(stages["expert"]))
        why = "this run trains no experts; leave it out"
        if has_experts:
            why = "--experts names a trained store; leave one of them out"
        meant = f" (did you mean --distill.{name.replace('_', '-')}?)" if name in _SHARED else ""
        raise UserError(f"{flag(name)} applies only when experts are trained, but {why}{meant}")
    return RunConfig(**{**own_defaults, **own}), chosen


def _needs_experts(distill: Mapping[str, Any]) -> bool:
    """True unless the distillation works on real images alone."""
    names = {field.name for field in fields(DistillSettings)}
    settings = DistillSettings(**{k: v for k, v in distill.items() if k in names})
    return settings.objective != "train-and-test" or bool(settings.needs_experts)


def _fields_of_one(stage: str) -> set[str]:
    """Return the fields that only this stage has, so that their flags need no prefix."""
    names = {name: {f.name for f in fields(each)} for name, each in _STAGES.items()}
    # Without a prefix, a flag such as --width is for the network of the experts.
    names["distill"] -= _SHARED
    others = _DECIDED.union(*(each for name, each in names.items() if name != stage))
    return names[stage] - others
