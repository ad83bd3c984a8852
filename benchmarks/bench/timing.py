"""Times of several functions in alternating rounds, and what they are at a number not measured."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import linear_regression, median
from typing import Any, TypeVar

import torch

Key = TypeVar("Key", bound=Hashable)


def synchronise(device: str | torch.device) -> None:
    """Waits until a device has done what it was asked for."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def seconds(function: Callable[[], Any], device: str | torch.device = "cpu") -> float:
    """The time of one call, up to the end of what it started on the device."""
    synchronise(device)
    began = time.perf_counter()
    function()
    synchronise(device)
    return time.perf_counter() - began


def alternate(
    functions: Mapping[Key, Callable[[], Any]], rounds: int, device: str | torch.device = "cpu"
) -> dict[Key, list[float]]:
    """Times functions in turn, round after round, so that a busy spell of the machine meets all.

    Each round begins with another function. Warm them up before.

    Args:
        functions: What to time.
        rounds: How often each.
        device: Where they work.

    Returns:
        The seconds of each round.
    """
    taken: dict[Key, list[float]] = {key: [] for key in functions}
    keys = list(functions)
    for index in range(rounds):
        gc.collect()
        first = index % len(keys)
        for key in keys[first:] + keys[:first]:
            taken[key].append(seconds(functions[key], device))
    return taken


def summary(rounds: Sequence[float]) -> dict[str, Any]:
    """Median, minimum and all rounds, in seconds, for a record."""
    return {"median": median(rounds), "min": min(rounds), "rounds": list(rounds)}


@dataclass(frozen=True)
class LinearFit:
    """A line through measurements at several numbers of steps.

    Attributes:
        intercept: Value at no steps.
        slope: Growth for each step.
        error: The largest distance of a measurement from the line, relative to the measurement.
    """

    intercept: float
    slope: float
    error: float

    def at(self, steps: float) -> float:
        """The value on the line."""
        return self.intercept + self.slope * steps


def fit_line(steps: Sequence[float], values: Sequence[float]) -> LinearFit:
    """The line of least squares.

    Args:
        steps: Where it was measured, at least two different numbers.
        values: What was measured there, positive.

    Returns:
        The line.
    """
    slope, intercept = linear_regression(steps, values)
    errors = [
        abs(intercept + slope * at - value) / value for at, value in zip(steps, values, strict=True)
    ]
    return LinearFit(intercept, slope, max(errors))
