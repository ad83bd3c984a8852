"""The log of a run: one JSON object per line, of which TensorBoard and Weights & Biases get curves.

Neither is imported unless it is asked for, and without ``--wandb`` nothing goes over a network.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from trajmatch import files
from trajmatch.distill.problem import Problem
from trajmatch.errors import UserError, as_user_error

#: Writes the numbers of an outer iteration or an evaluation; every line has ``iteration``.
Log = Callable[..., None]

#: Takes a line of the log: ``iteration`` and other values, as JSON can hold them.
Write = Callable[[Mapping[str, Any]], None]

#: Curves of an evaluation, with the name of each in a line of the log.
_OF_EVALUATION = ("mean", "std", "diverged")
#: Numbers of a line that tell which it is, and are no curve of their own.
_NO_CURVE = ("iteration", "seeds")


@contextmanager
def metrics_log(
    path: Path, iteration: int, loggers: Sequence[AbstractContextManager[Write]] = ()
) -> Iterator[Log]:
    """Append to the log of a run.

    A resumed run first drops the lines beyond its checkpoint, because it does those iterations
    again. Numbers that are not finite become null, for which JSON has a word.

    Args:
        path: The file.
        iteration: Outer iterations done; lines after it are dropped.
        loggers: Each gives what takes every new line.

    Raises:
        UserError: The file cannot be read or written, or is not such a log; or a logger is not
            installed, or refuses.
    """
    with ExitStack() as stack:
        writes = [stack.enter_context(logger) for logger in loggers]
        files.check_writable(path.parent)
        kept = _lines_until(path, iteration) if path.exists() else []
        files.write_text(path, "".join(kept))

        def log(**numbers: Any) -> None:
            line = {name: _finite(value) for name, value in numbers.items()}
            with (
                as_user_error(f"cannot write {path}: ", OSError),
                path.open("a", encoding="utf-8") as file,
            ):
                file.write(json.dumps(line) + "\n")
            for write in writes:
                write(line)

        yield log


def loggers_for(problem: Problem, iteration: int) -> list[AbstractContextManager[Write]]:
    """Return the loggers that the configuration asks for.

    Args:
        problem: What the run works on.
        iteration: Outer iterations done; curves that an interrupted run left are cut there.
    """
    config = problem.config
    loggers: list[AbstractContextManager[Write]] = []
    if config.tensorboard is not None:
        loggers.append(_tensorboard(config.tensorboard, iteration))
    if config.wandb is not None:
        loggers.append(_wandb(config.wandb, problem.identity, config.out, config.quiet))
    return loggers


@contextmanager
def _tensorboard(folder: Path, iteration: int) -> Iterator[Write]:
    """Write the curves into a folder for TensorBoard."""
    with _installed("--tensorboard", "tensorboard"):
        from torch.utils.tensorboard import SummaryWriter
    with as_user_error(f"--tensorboard: cannot write in {folder}: ", OSError):
        writer: Any = SummaryWriter(folder, purge_step=iteration + 1)

    def write(line: Mapping[str, Any]) -> None:
        for name, value in curves(line).items():
            writer.add_scalar(name, value, line["iteration"])

    with closing(writer):
        yield write


@contextmanager
def _wandb(project: str, identity: Mapping[str, Any], out: Path, quiet: bool) -> Iterator[Write]:
    """Send the curves to a project of Weights & Biases.

    A run that goes on continues its curves there: its id is made of what the run is and of where
    its artifact goes.
    """
    with _installed("--wandb", "wandb"):
        import wandb
    # A run that goes on may be asked for more iterations.
    which = {name: value for name, value in identity.items() if name != "iterations"}
    text = json.dumps([str(out.resolve()), which], sort_keys=True)
    with as_user_error(f"--wandb {project}: ", wandb.Error):
        run: Any = wandb.init(
            project=project,
            name=out.name.removesuffix(".safetensors"),
            id=hashlib.sha256(text.encode()).hexdigest()[:16],
            resume="allow",
            config=dict(identity),
            settings=wandb.Settings(silent=quiet),
        )
    try:
        # An evaluation belongs to the step of the line before it, which wandb keeps open until a
        # later step comes.
        yield lambda line: run.log(curves(line), step=line["iteration"])
    finally:
        run.finish()


def _installed(flag: str, package: str) -> AbstractContextManager[None]:
    """Say how to get a package that cannot be imported."""
    advice = f"; pip install 'trajmatch[{package}]', or leave {flag} out"
    return as_user_error(f"{flag} needs the package {package}: ", ImportError, advice=advice)


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


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _lines_until(path: Path, iteration: int) -> list[str]:
    """Return the lines of the iterations up to the given one; a cut last line is dropped."""
    kept = []
    other = f"{path} is not a log of this program: "
    with (
        as_user_error(f"cannot read the log {path}: ", OSError),
        as_user_error(other, UnicodeDecodeError, advice="; choose another --log"),
    ):
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            done = json.loads(line)["iteration"]
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines) and not line.endswith("\n"):
                break
            raise UserError(
                f"{path} is not a log of this program (line {number}); choose another --log"
            ) from error
        if done <= iteration:
            kept.append(line)
    return kept
