"""TensorBoard and Weights & Biases: loggers, which get every line of the log of a run.

Neither is imported unless it is asked for, and without ``--wandb`` nothing goes over a network.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from trajmatch.distill.problem import Problem
from trajmatch.errors import UserError, as_user_error

#: Curves of an evaluation, with the name of each in a line of the log.
_OF_EVALUATION = ("mean", "std", "diverged")
#: Numbers of a line that tell which it is, and are no curve of their own.
_NO_CURVE = ("iteration", "seeds")


class Logger(Protocol):
    """A receiver of the lines of a log."""

    def write(self, line: Mapping[str, Any]) -> None:
        """Record a line.

        Args:
            line: ``iteration`` and other values, as JSON can hold them.
        """

    def close(self) -> None:
        """End the record."""


def loggers_for(problem: Problem, iteration: int) -> Sequence[Logger]:
    """Return the loggers that the configuration asks for.

    Args:
        problem: What the run works on.
        iteration: Outer iterations done.

    Raises:
        UserError: What is asked for is not installed, or refuses.
    """
    config = problem.config
    loggers: list[Logger] = []
    if config.tensorboard is not None:
        loggers.append(TensorBoard(config.tensorboard, iteration))
    if config.wandb is not None:
        loggers.append(Wandb(config.wandb, problem.identity, config.out, config.quiet))
    return loggers


class TensorBoard:
    """Write the curves into a folder for TensorBoard.

    Args:
        folder: The folder.
        iteration: Outer iterations done; curves that an interrupted run left are cut there.

    Raises:
        UserError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, iteration: int) -> None:
        """Open the folder; see the class."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _not_installed("--tensorboard", "tensorboard") from error
        with as_user_error(f"--tensorboard: cannot write in {folder}: ", OSError):
            self._writer: Any = SummaryWriter(folder, purge_step=iteration + 1)

    def write(self, line: Mapping[str, Any]) -> None:
        """Add a point to every curve; see :class:`Logger`."""
        for name, value in curves(line).items():
            self._writer.add_scalar(name, value, line["iteration"])

    def close(self) -> None:
        """Flush and close the files."""
        self._writer.close()


class Wandb:
    """Send the curves to a project of Weights & Biases.

    A run that goes on continues its curves there: its id is made of what the run is and of where
    its artifact goes.

    Args:
        project: The project.
        identity: What the run is; shown there as its configuration.
        out: Where the artifact goes; gives the run its name.
        quiet: Print nothing.

    Raises:
        UserError: wandb is not installed, or refuses.
    """

    def __init__(self, project: str, identity: Mapping[str, Any], out: Path, quiet: bool) -> None:
        """Begin or continue a run; see the class."""
        try:
            import wandb
        except ImportError as error:
            raise _not_installed("--wandb", "wandb") from error
        # A run that goes on may be asked for more iterations.
        which = {name: value for name, value in identity.items() if name != "iterations"}
        text = json.dumps([str(out.resolve()), which], sort_keys=True)
        with as_user_error(f"--wandb {project}: ", wandb.Error):
            self._run: Any = wandb.init(
                project=project,
                name=out.name.removesuffix(".safetensors"),
                id=hashlib.sha256(text.encode()).hexdigest()[:16],
                resume="allow",
                config=dict(identity),
                settings=wandb.Settings(silent=quiet),
            )

    def write(self, line: Mapping[str, Any]) -> None:
        """Add a point to every curve; see :class:`Logger`."""
        # An evaluation belongs to the step of the line before it, which wandb keeps open until a
        # later step comes.
        self._run.log(curves(line), step=line["iteration"])

    def close(self) -> None:
        """End the run there."""
        self._run.finish()


def curves(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a line of the log that make curves, by name.

    Args:
        line: An outer iteration, or an evaluation, which has a ``split``.

    Returns:
        Those of an evaluation are called ``SPLIT/mean`` and so on; ``refused`` and ``skipped`` are
        1 or 0; what was not finite is left out.
    """
    if "split" in line:
        named = {f"{line['split']}/{name}": line[name] for name in _OF_EVALUATION}
    else:
        named = {name: value for name, value in line.items() if name not in _NO_CURVE}
        named["refused"] = line["refused"] is not None
    return {
        name: float(value) for name, value in named.items() if isinstance(value, int | float | bool)
    }


def _not_installed(flag: str, package: str) -> UserError:
    return UserError(
        f"{flag} needs the package {package}, which is not installed: "
        f"pip install 'trajmatch[{package}]', or leave {flag} out"
    )
