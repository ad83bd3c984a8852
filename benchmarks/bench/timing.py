"""Times of several functions in alternating rounds, and what they are at a number not measured."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from statistics import linear_regression, median
from typing import Any, NamedTuple, TypeVar

import torch

Key = TypeVar("Key", bound=Hashable)


def seconds(function: Callable[[], Any], device: str | torch.device = "cpu") -> float:
    """Time one call, up to the end of what it started on the device."""
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    function()
    if on_gpu:
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def alternate(
    functions: Mapping[Key, Callable[[], Any]], rounds: int, device: str | torch.device = "cpu"
) -> dict[Key, list[float]]:
    """Time functions in turn, round after round, so that a busy spell of the machine meets all.

    ``torch.utils.benchmark`` times one function after another. Each round begins with another
    function. Warm them up before.

    Args:
        functions: Functions to time.
        rounds: Number of rounds.
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
    """Return median, minimum and all rounds, in seconds, for a record."""
    return {"median": median(rounds), "min": min(rounds), "rounds": list(rounds)}


class LinearFit(NamedTuple):
    """A line through measurements at several numbers of steps.

    Attributes:
        intercept: Value at no steps.
        slope: Growth for each step.
        error: The largest distance of a measurement from the line, relative to the measurement.
    """

    intercept: float
    slope: float
    error: float = 0.0

    def at(self, steps: float) -> float:
        """Return the value on the line."""
        return self.intercept + self.slope * steps


def fit_line(steps: Sequence[float], values: Sequence[float]) -> LinearFit:
    """Fit a line of least squares to positive values at two or more numbers of steps."""
    slope, intercept = linear_regression(steps, values)
    line = LinearFit(intercept, slope)
    errors = [abs(line.at(at) - value) / value for at, value in zip(steps, values, strict=True)]
    return line._replace(error=max(errors))
