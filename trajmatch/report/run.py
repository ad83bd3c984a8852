"""Everything that a run left, read and checked to belong together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trajmatch import artifact, files, snapshots
from trajmatch.artifact import Artifact
from trajmatch.errors import UserError
from trajmatch.recipes import Recipe, find_recipe
from trajmatch.report import history, scores
from trajmatch.report.config import ReportConfig
from trajmatch.report.history import History
from trajmatch.report.scores import Evaluated, Scores, Sizes, Summary
from trajmatch.snapshots import Snapshots


@dataclass(frozen=True)
class Run:
    """A run.

    Attributes:
        artifact: The distilled set.
        history: The run iteration by iteration; None: there is no log.
        snapshots: The images on the way; None: there are none.
        scores: Results of evaluations, for each architecture.
        sizes: Numbers of real images, as far as they are known.
        summary: Numbers of `trajmatch run`; None: it did not make the distilled set.
        recipe: The recipe that the run names, as it is today; None: it named none, or it is gone.
    """

    artifact: Artifact
    history: History | None
    snapshots: Snapshots | None
    scores: list[Scores]
    sizes: Sizes
    summary: Summary | None
    recipe: Recipe | None


def read(config: ReportConfig) -> Run:
    """Read the files that a report is made of.

    Args:
        config: Says where they are.

    Raises:
        UserError: A file is missing that was asked for, or one is damaged or of another run.
    """
    path = config.artifact
    if not path.exists():
        raise UserError(
            f"there is no {path}; give a folder in which `trajmatch run` has finished, or a file "
            "that `trajmatch distill` wrote"
        )
    distilled = artifact.load(path)
    log_path = config.log or _if_there(files.beside(path, ".jsonl"))
    images_path = config.snapshots or _if_there(files.beside(path, ".snapshots.safetensors"))
    summary = scores.read(config.summary, Summary) if config.summary else None
    if summary is not None:
        summary.network = str(distilled.network["name"])
    evaluated = [scores.read(each, Evaluated) for each in config.evaluation]
    sizes = [each.dataset for each in evaluated]
    if summary is not None:
        sizes.insert(0, Sizes(summary.training_images, summary.test_images))
    return Run(
        artifact=distilled,
        history=None if log_path is None else _log(log_path, distilled),
        snapshots=None if images_path is None else snapshots.of_artifact(images_path, distilled),
        scores=[
            *([summary] if summary else []),
            *(scores for each in evaluated for scores in each.networks),
        ],
        sizes=next((each for each in sizes if each.test_images), Sizes()),
        summary=summary,
        recipe=_recipe(distilled.recipe),
    )


def _recipe(settings: Mapping[str, object]) -> Recipe | None:
    """Return the recipe that a run named; None where there is none that can be read."""
    name = settings.get("recipe")
    try:
        return find_recipe(name) if isinstance(name, str) else None
    except UserError:
        return None


def _if_there(path: Path) -> Path | None:
    return path if path.exists() else None


def _log(path: Path, distilled: Artifact) -> History:
    """Read a log that ends when the run did, with its step size, or before.

    A log that ends before is of a run that was continued with another log.
    """
    found, end = history.read(path), distilled.recipe.get("iterations")
    last = found.iterations[-1] if found.iterations else None
    if last is None or end is None:
        return found
    if last.iteration > end:
        why = f"it has iteration {last.iteration}, and the distilled set was made in {end}"
    elif last.iteration == end and distilled.selection == "last" and last.step_size != distilled.lr:
        why = (
            f"it ends with the step size {last.step_size}, and the distilled set has {distilled.lr}"
        )
    else:
        return found
    raise UserError(f"{path} is the log of another run: {why}; give its own with --log")
