"""All that a run left, read and checked to belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trajmatch import artifact, files, snapshots
from trajmatch.artifact import Artifact
from trajmatch.errors import UserError
from trajmatch.recipes import Recipe, find_recipe
from trajmatch.report import history, scores
from trajmatch.report.config import ReportConfig
from trajmatch.report.history import History
from trajmatch.report.scores import Score
from trajmatch.snapshots import Snapshots


@dataclass(frozen=True)
class Run:
    """What there is of a run.

    Attributes:
        artifact: The distilled set.
        history: The run iteration by iteration; None: there is no log.
        snapshots: The images on the way; None: there are none.
        scores: What evaluations found.
        stage_seconds: What each stage of `trajmatch run` took.
        training_images: Real images that were distilled; None: unknown.
        test_images: Images that accuracies were measured on; None: unknown.
        expert_accuracies: Test accuracy of each expert in percent; empty: unknown.
        command: The command line; empty: unknown.
        recipe: The recipe that the run names, as it is today; None: it named none, or it is gone.
    """

    artifact: Artifact
    history: History | None
    snapshots: Snapshots | None
    scores: list[Score] = field(default_factory=list)
    stage_seconds: dict[str, float] = field(default_factory=dict)
    training_images: int | None = None
    test_images: int | None = None
    expert_accuracies: Sequence[float] = ()
    command: str = ""
    recipe: Recipe | None = None

    @property
    def network(self) -> str:
        """The architecture that was distilled for."""
        return str(self.artifact.network["name"])


def read(config: ReportConfig) -> Run:
    """Reads what a report is made of.

    Args:
        config: Says where it is.

    Returns:
        What there is. Of log and snapshots, what was not asked for by name may be missing.

    Raises:
        UserError: Something is missing, damaged, or of another run.
    """
    path = config.artifact
    if not path.exists():
        raise UserError(
            f"there is no {path}; give a folder in which `trajmatch run` has finished, or a file "
            "that `trajmatch distill` wrote"
        )
    distilled = artifact.load(path)
    log_path = config.log or _if_there(files.beside(path, ".jsonl"))
    told = None if log_path is None else history.read(log_path)
    if told is not None and log_path is not None:
        _check_log(log_path, told, distilled)
    images_path = config.snapshots or _if_there(files.beside(path, ".snapshots.safetensors"))
    found: list[Score] = []
    seconds: dict[str, float] = {}
    about: dict[str, Any] = {}
    if config.summary is not None:
        found += scores.of_summary(config.summary, str(distilled.network["name"]))
        seconds = scores.stage_seconds(config.summary)
        about |= scores.about(config.summary)
    for each in config.evaluation:
        found += scores.of_evaluation(each)
        about = {**scores.about(each), **about}
    return Run(
        artifact=distilled,
        history=told,
        snapshots=None if images_path is None else snapshots.of_artifact(images_path, distilled),
        scores=found,
        stage_seconds=seconds,
        recipe=_recipe(distilled.recipe.get("recipe")),
        **about,
    )


def _recipe(name: object) -> Recipe | None:
    """The recipe of a name or path; None where there is none that can be read."""
    if not isinstance(name, str):
        return None
    try:
        return find_recipe(name)
    except UserError:
        return None


def _if_there(path: Path) -> Path | None:
    return path if path.exists() else None


def _check_log(path: Path, told: History, distilled: Artifact) -> None:
    """Make sure that a log ends when the run did, or before, and with the step size of the result.

    A log that ends before is of a run that was continued with another log.
    """
    last, end = told.iterations[-1:], distilled.recipe.get("iterations")
    if last and end is not None and last[0] > end:
        raise UserError(
            f"{path} is the log of another run: it has iteration {last[0]}, and the distilled set "
            f"was made in {end}; give its own with --log"
        )
    if distilled.selection != "last" or last != [end]:
        return
    if told.step_sizes[-1] != distilled.lr:
        raise UserError(
            f"{path} is the log of another run: it ends with the step size "
            f"{told.step_sizes[-1]}, and the distilled set has {distilled.lr}; give its own with "
            "--log"
        )
