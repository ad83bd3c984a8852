"""Everything that a run left, read and checked to belong together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from trajmatch import artifact, files, snapshots
from trajmatch.artifact import Artifact
from trajmatch.errors import UserError
from trajmatch.recipes import Recipe, find_recipe
from trajmatch.report import history, scores
from trajmatch.report.config import ReportConfig
from trajmatch.report.history import History
from trajmatch.report.scores import Results
from trajmatch.snapshots import Snapshots


class Run(NamedTuple):
    """A run.

    Attributes:
        artifact: The distilled set.
        history: The run iteration by iteration; empty where there is no log.
        snapshots: The images on the way; None: there are none.
        results: Results of evaluations, perhaps none.
        recipe: The recipe that the run names, as it is today; None: it named none, or it is gone.
    """

    artifact: Artifact
    history: History
    snapshots: Snapshots | None
    results: Results
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
    log = config.log or files.beside(path, ".jsonl")
    images = config.snapshots or files.beside(path, ".snapshots.safetensors")
    results = [scores.read(each) for each in config.evaluation]
    if config.summary is not None:
        results.insert(0, scores.read(config.summary, str(distilled.network["name"])))
    return Run(
        artifact=distilled,
        history=_log(log, distilled) if config.log or log.exists() else History([], []),
        snapshots=snapshots.of_artifact(images, distilled)
        if config.snapshots or images.exists()
        else None,
        results=scores.gathered(results),
        recipe=_recipe(distilled.recipe),
    )


def _recipe(settings: Mapping[str, object]) -> Recipe | None:
    """Return the recipe that a run named; None where there is none that can be read."""
    name = settings.get("recipe")
    try:
        return find_recipe(name) if isinstance(name, str) else None
    except UserError:
        return None


def _log(path: Path, distilled: Artifact) -> History:
    """Read a log that ends when the run did, with its step size, or before.

    A log that ends before is of a run that was continued with another log.
    """
    found, end = history.read(path), distilled.recipe.get("iterations")
    last = found.iterations[-1] if found.iterations else None
    if last is None or end is None or last.iteration < end:
        return found
    differs = distilled.selection == "last" and last.step_size != distilled.lr
    if last.iteration > end or differs:
        raise UserError(
            f"{path} is the log of another run: it ends with iteration {last.iteration} and step "
            f"size {last.step_size}, and the distilled set was made in {end} and has the step size "
            f"{distilled.lr}; give its own with --log"
        )
    return found
