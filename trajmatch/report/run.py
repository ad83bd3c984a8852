"""Read all files of a run and check that they belong together."""

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
    """Content of the files of a run."""

    artifact: Artifact
    history: History  # empty if there is no log
    snapshots: Snapshots | None
    results: Results  # may be empty
    recipe: Recipe | None  # the named recipe in its current version, if it still exists


def read(config: ReportConfig) -> Run:
    """Read the files of a run.

    Raises UserError if a requested file is missing, or if a file is damaged or of another run.
    """
    path = config.artifact
    if not path.exists():
        raise UserError(
            f"there is no {path}; give a folder in which `trajmatch run` has finished, or a file "
            "that `trajmatch distill` wrote"
        )
    distilled = artifact.load(path)
    # Files beside the distilled set are optional, unless the user names them.
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
    """Return the recipe that a run named; None if it named none or the recipe is unreadable."""
    name = settings.get("recipe")
    try:
        return find_recipe(name) if isinstance(name, str) else None
    except UserError:
        return None


def _log(path: Path, distilled: Artifact) -> History:
    """Read a log; raise UserError if it belongs to another run than the distilled set."""
    found, end = history.read(path), distilled.recipe.get("iterations")
    last = found.iterations[-1] if found.iterations else None
    # A log may end early, if the run was continued with another log.
    if last is None or end is None or last.iteration < end:
        return found
    # The last iterate has the logged step size; a selected iterate may come from any iteration.
    differs = distilled.selection == "last" and last.step_size != distilled.lr
    if last.iteration > end or differs:
        raise UserError(
            f"{path} is the log of another run: it ends with iteration {last.iteration} and step "
            f"size {last.step_size}, but the distilled set was made in {end} iterations and has "
            f"step size {distilled.lr}; give the log of this distilled set with --log"
        )
    return found
