"""What the log of a run says, read line by line."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trajmatch.errors import UserError

#: No line of a log is as long: a line of a thousand matches has 50 kB.
_LONGEST_LINE = 2**20
#: No number of a log is as large, or else it could not be drawn.
_LARGEST = 1e100


@dataclass(frozen=True)
class Evaluation:
    """Test accuracy of the images at some iteration.

    Attributes:
        iteration: Outer iterations done.
        split: ``"test"`` or ``"holdout"``.
        mean: Mean over the networks, in percent.
        std: Standard deviation over them.
        seeds: Number of networks.
    """

    iteration: int
    split: str
    mean: float
    std: float
    seeds: int


@dataclass
class History:
    """A run, iteration by iteration.

    Attributes:
        iterations: Outer iterations, ascending.
        losses: Matching loss of each; None where it was not finite.
        step_sizes: Step size after each.
        seconds: What each took; None where the log does not say.
        start_epochs: How often each start epoch was drawn.
        experts: How often each expert was drawn.
        refusals: How often each cause refused an update.
        skipped: Updates left out because of their loss.
        evaluations: Those on the way.
    """

    iterations: list[int] = field(default_factory=list)
    losses: list[float | None] = field(default_factory=list)
    step_sizes: list[float | None] = field(default_factory=list)
    seconds: list[float | None] = field(default_factory=list)
    start_epochs: Counter[int] = field(default_factory=Counter)
    experts: Counter[int] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    skipped: int = 0
    evaluations: list[Evaluation] = field(default_factory=list)


def read(path: Path) -> History:
    """Reads the log that :class:`trajmatch.distill.metrics.MetricsLog` wrote.

    Args:
        path: The file. A last line that a crash has cut is left out.

    Returns:
        What it says.

    Raises:
        UserError: It cannot be read or is no such log; the line is named.
    """
    history = History()
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(_LONGEST_LINE):
                number += 1
                if line.endswith(b"\n"):
                    _enter(history, _parsed(line))
                elif file.read(1):
                    raise ValueError(f"it is longer than {_LONGEST_LINE} bytes")
    except OSError as error:
        raise UserError(f"cannot read the log {path}: {error.strerror}") from error
    except (ValueError, KeyError, RecursionError) as error:
        raise UserError(
            f"{path} is not a log that `trajmatch distill` wrote (line {number}: {error}); give "
            "that one with --log"
        ) from error
    return history


def _parsed(line: bytes) -> dict[str, Any]:
    content = json.loads(line)
    if not isinstance(content, dict):
        raise ValueError("it holds no object")
    return content


def _enter(history: History, line: dict[str, Any]) -> None:
    iteration = _count(line, "iteration")
    if "split" in line:
        history.evaluations.append(
            Evaluation(
                iteration,
                _word(line, "split"),
                _number(line, "mean"),
                _number(line, "std"),
                _count(line, "seeds"),
            )
        )
        return
    if history.iterations and iteration <= history.iterations[-1]:
        raise ValueError(f"iteration {iteration} comes after iteration {history.iterations[-1]}")
    history.iterations.append(iteration)
    history.losses.append(_number_or_none(line, "loss"))
    history.step_sizes.append(_number_or_none(line, "step_size"))
    history.seconds.append(_number_or_none(line, "seconds"))
    history.start_epochs.update(_counts(line, "start_epoch"))
    history.experts.update(_counts(line, "expert"))
    if line["refused"] is not None:
        history.refusals[_word(line, "refused")] += 1
    history.skipped += line.get("skipped") is True


def _counts(line: dict[str, Any], name: str) -> list[int]:
    """The number of one match, or those of several, which have a name of their own."""
    if name in line:
        return [_count(line, name)]
    several = line[f"{name}s"]
    if not isinstance(several, list):
        raise ValueError(f"{name}s is no list")
    return [_count({name: each}, name) for each in several]


def _count(line: dict[str, Any], name: str) -> int:
    value = line[name]
    if type(value) is not int or not 0 <= value < 2**31:
        raise ValueError(f"{name} is {value!r:.40}")
    return value


def _number(line: dict[str, Any], name: str) -> float:
    value = _number_or_none(line, name)
    if value is None:
        raise ValueError(f"{name} is missing")
    return value


def _number_or_none(line: dict[str, Any], name: str) -> float | None:
    value = line.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _LARGEST:
        raise ValueError(f"{name} is {value!r:.40}")
    return float(value)


def _word(line: dict[str, Any], name: str) -> str:
    value = line[name]
    if not isinstance(value, str):
        raise ValueError(f"{name} is {value!r:.40}")
    return value
