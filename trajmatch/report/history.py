"""The log of a run, line by line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from trajmatch.errors import as_user_error

Count = Annotated[int, Meta(ge=0, lt=2**31)]
#: Larger numbers could not be drawn.
Number = Annotated[float, Meta(gt=-1e100, lt=1e100)]


class Iteration(msgspec.Struct):
    """An outer iteration.

    Attributes:
        iteration: Outer iterations done.
        refused: Why the update was refused; None: it was not.
        loss: Loss; None: it was not finite.
        step_size: Step size after it; None: it was not finite.
        seconds: Time it took; None: unknown.
        skipped: True if the update was left out because of its loss.
        start_epochs: Start epoch of each match.
        experts: Expert of each match.
        window_starts: Steps before the window of each student that is tested.
    """

    iteration: Count
    refused: str | None
    loss: Number | None = None
    step_size: Number | None = None
    seconds: Number | None = None
    skipped: bool = False
    start_epochs: tuple[Count, ...] = ()
    experts: tuple[Count, ...] = ()
    window_starts: tuple[Count, ...] = ()


class Evaluation(msgspec.Struct):
    """Test accuracy of the images at some iteration, in percent, over several networks."""

    iteration: Count
    split: Literal["test", "holdout"]
    mean: Number
    std: Number
    seeds: Count


class History(NamedTuple):
    """A run: its iterations, ascending, and the evaluations on the way."""

    iterations: list[Iteration]
    evaluations: list[Evaluation]


def read(path: Path) -> History:
    """Read the log that :func:`trajmatch.distill.metrics.metrics_log` wrote.

    Args:
        path: The file. A last line that a crash has cut is left out.

    Raises:
        UserError: It cannot be read or is no such log; the line is named.
    """
    history = History([], [])
    with as_user_error(f"cannot read the log {path}: ", OSError):
        lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        place = f"{path} is not a log that `trajmatch distill` wrote (line {number}: "
        advice = "); give that one with --log"
        with as_user_error(place, msgspec.DecodeError, ValueError, RecursionError, advice=advice):
            if line.endswith(b"\n"):
                _enter(history, line)
    return history


def _enter(history: History, line: bytes) -> None:
    if b'"split":' in line:
        history.evaluations.append(msgspec.json.decode(line, type=Evaluation))
        return
    numbers = msgspec.json.decode(line, type=dict[str, Any])
    for name in {"start_epoch", "expert", "window_start"} & numbers.keys():  # of a single match
        numbers[f"{name}s"] = [numbers[name]]
    new, last = msgspec.convert(numbers, Iteration), history.iterations[-1:]
    if last and new.iteration <= last[0].iteration:
        raise ValueError(f"iteration {new.iteration} comes after iteration {last[0].iteration}")
    history.iterations.append(new)
