"""Metrics log of a run: one JSON object per line, optionally also sent to TensorBoard and wandb."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from trajmatch import files
from trajmatch.distill.problem import Problem
from trajmatch.errors import as_user_error

#: Function that logs the numbers of an iteration or an evaluation, given as keywords.
Log = Callable[..., None]

#: Function that receives a log line as JSON values; every line has ``iteration``.
Write = Callable[[Mapping[str, Any]], None]

#: Entries of an evaluation line that are plotted.
_OF_EVALUATION = ("mean", "std", "diverged")
#: Entries of an iteration line that are not plotted.
_NO_CURVE = ("iteration", "seeds")


@contextmanager
def metrics_log(
    path: Path, iteration: int, loggers: Sequence[AbstractContextManager[Write]] = ()
) -> Iterator[Log]:
    """Open the log; yield a function that writes a line to it and to ``loggers``.

    Lines of an existing log are dropped if they are later than ``iteration``. UserError is raised
    if the file cannot be read or written or is not a log, or if a logger is not installed or fails.
    """
    with ExitStack() as stack:
        writes = [stack.enter_context(logger) for logger in loggers]
        files.check_writable(path.parent)
        # A resumed run repeats the iterations after its checkpoint, so drop their lines.
        kept = _lines_until(path, iteration) if path.exists() else []
        files.write_bytes(path, b"".join(kept))

        def log(**numbers: Any) -> None:
            # JSON has no NaN and no infinity: write null.
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
    """Return the configured loggers for a run that continues after ``iteration``."""
    config = problem.config
    loggers: list[AbstractContextManager[Write]] = []
    if config.tensorboard is not None:
        loggers.append(_tensorboard(config.tensorboard, iteration))
    if config.wandb is not None:
        loggers.append(_wandb(config.wandb, problem.identity, config.out, config.quiet))
    return loggers


@contextmanager
def _tensorboard(folder: Path, iteration: int) -> Iterator[Write]:
    """Yield a function that writes the plotted numbers of a log line for TensorBoard."""
    # Imported here, because the package is optional.
    with _installed("--tensorboard", "tensorboard"):
        from torch.utils.tensorboard import SummaryWriter
    with as_user_error(f"--tensorboard: cannot write in {folder}: ", OSError):
        # TensorBoard hides what an interrupted run wrote for `purge_step` and later steps.
        writer: Any = SummaryWriter(folder, purge_step=iteration + 1)

    def write(line: Mapping[str, Any]) -> None:
        for name, value in curves(line).items():
            writer.add_scalar(name, value, line["iteration"])

    with closing(writer):
        yield write


@contextmanager
def _wandb(project: str, identity: Mapping[str, Any], out: Path, quiet: bool) -> Iterator[Write]:
    """Yield a function that sends the plotted numbers of a log line to wandb."""
    with _installed("--wandb", "wandb"):
        import wandb
    # The id is a hash of settings and output path, so that a resumed run finds its earlier curves.
    # Resuming may raise the number of iterations, which the hash therefore leaves out.
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
        # An evaluation has the same step as the iteration before it. wandb merges both lines,
        # because it keeps a step open until the next one.
        yield lambda line: run.log(curves(line), step=line["iteration"])
    finally:
        run.finish()


def _installed(flag: str, package: str) -> AbstractContextManager[None]:
    """Turn an ImportError into advice on how to install the package."""
    advice = f"; pip install 'trajmatch[{package}]', or leave {flag} out"
    return as_user_error(f"{flag} needs the package {package}: ", ImportError, advice=advice)


def curves(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers to plot from a log line; an evaluation's names are ``SPLIT/mean`` etc."""
    if "split" in line:
        named = {f"{line['split']}/{name}": line[name] for name in _OF_EVALUATION}
    else:
        named = {name: value for name, value in line.items() if name not in _NO_CURVE}
        # In the log this is a text or null; in the plot it is 1 or 0.
        named["refused"] = line["refused"] is not None
    # Non-finite numbers are null in a line, and lists have no curve.
    return {
        name: float(value) for name, value in named.items() if isinstance(value, int | float | bool)
    }


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _Line(msgspec.Struct):
    """Line of the log, reduced to the entry that every line has."""

    iteration: int


def _lines_until(path: Path, last: int) -> list[bytes]:
    """Return the lines up to an iteration; an incomplete last line is dropped."""
    kept = []
    with as_user_error(f"cannot read the log {path}: ", OSError):
        lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        other = f"{path} is not a log of this program (line {number}: "
        with as_user_error(other, msgspec.DecodeError, advice="); choose another --log"):
            # A line without a line break was cut off by an interruption.
            cut = line.startswith(b"{") and not line.endswith(b"\n")
            if not cut and msgspec.json.decode(line, type=_Line).iteration <= last:
                kept.append(line)
    return kept
