"""Reader for the log of a run, one JSON object per line."""

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from trajmatch.errors import as_user_error

Count = Annotated[int, Meta(ge=0, lt=2**31)]
#: Numbers in the range that matplotlib can draw.
Number = Annotated[float, Meta(gt=-1e100, lt=1e100)]


class Iteration(msgspec.Struct):
    """One outer iteration; a number is None if it was not logged or not finite."""

    iteration: Count  # number of iterations done
    refused: str | None  # reason why the update was refused; None: applied or skipped
    loss: Number | None = None
    step_size: Number | None = None  # after the update
    seconds: Number | None = None
    skipped: bool = False  # no update because of the loss (--skip-above)
    start_epochs: tuple[Count, ...] = ()  # one for each match
    experts: tuple[Count, ...] = ()  # one for each match
    window_starts: tuple[Count, ...] = ()  # steps before the window, one for each tested student


class Evaluation(msgspec.Struct):
    """Test accuracy in percent (for targets: error) after an iteration, over ``seeds`` networks."""

    iteration: Count
    split: Literal["test", "holdout"]
    mean: Number
    std: Number
    seeds: Count


class History(NamedTuple):
    """Iterations of a run, ascending, and its evaluations."""

    iterations: list[Iteration]
    evaluations: list[Evaluation]


def read(path: Path) -> History:
    """Read a log that :func:`trajmatch.distill.metrics.metrics_log` wrote.

    Raises UserError, with the line number, if the file is not such a log.
    """
    history = History([], [])
    with as_user_error(f"cannot read the log {path}: ", OSError):
        lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        place = f"{path} is not a log that `trajmatch distill` wrote (line {number}: "
        advice = "); name the run's log with --log"
        with as_user_error(place, msgspec.DecodeError, ValueError, RecursionError, advice=advice):
            # A line without a line break is incomplete: the run was killed while writing it.
            if line.endswith(b"\n"):
                _enter(history, line)
    return history


def _enter(history: History, line: bytes) -> None:
    """Add a line of the log; raise an error if it is invalid or the iterations do not ascend."""
    # Only evaluations have a split.
    if b'"split":' in line:
        history.evaluations.append(msgspec.json.decode(line, type=Evaluation))
        return
    numbers = msgspec.json.decode(line, type=dict[str, Any])
    # The log has plural names with a list if there are several matches per iteration.
    for name in {"start_epoch", "expert", "window_start"} & numbers.keys():
        numbers[f"{name}s"] = [numbers[name]]
    new, last = msgspec.convert(numbers, Iteration), history.iterations[-1:]
    if last and new.iteration <= last[0].iteration:
        raise ValueError(f"iteration {new.iteration} comes after iteration {last[0].iteration}")
    history.iterations.append(new)
