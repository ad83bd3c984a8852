"""Axes of charts: where numbers come to lie, and which of them are written."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

#: A curve whose largest value is so many times its smallest is drawn on a logarithmic axis.
_LOG_RATIO = 50.0


#: Width of a character of a label: of the widest digit of the usual fonts, at the page's size.
CHARACTER = 8.3
#: Labels beside each other are so far apart at least.
_BETWEEN = 8


@dataclass(frozen=True)
class Axis:
    """Maps numbers to places on the page.

    Attributes:
        low: Number at the beginning.
        high: Number at the end, above ``low``.
        begin: Place of ``low``.
        end: Place of ``high``.
        log: Whether powers are at equal distances; ``low`` is then above 0.
    """

    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    def place(self, value: float) -> float:
        """The place of a number between ``low`` and ``high``."""
        low, high = self._scaled(self.low), self._scaled(self.high)
        part = (self._scaled(value) - low) / (high - low)
        return round(self.begin + part * (self.end - self.begin), 1)

    @property
    def ticks(self) -> list[float]:
        """Round numbers to write at the axis."""
        if not self.log:
            return round_numbers(self.low, self.high)
        first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
        if last - first < 1:
            return round_numbers(self.low, self.high)
        step = max(1, (last - first) // 4)
        return [10.0**power for power in range(first, last + 1, step)]

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.log else value


def fitting(values: Sequence[float], begin: float, end: float) -> Axis:
    """An axis for some numbers, with a little room at both ends.

    Args:
        values: One or more, finite.
        begin: Place of the lower end.
        end: Place of the upper end.

    Returns:
        A logarithmic axis where they are positive and far apart.
    """
    low, high = min(values), max(values)
    if low > 0 and high / low > _LOG_RATIO:
        return Axis(low / 1.2, high * 1.2, begin, end, log=True)
    spread = high - low
    # Numbers that differ by rounding alone are drawn as equal.
    room = 0.06 * spread if spread > 1e-9 * abs(high) else 0.5 * abs(high) or 1.0
    below = 0.0 if 0 <= low < 2 * room else low - room
    return Axis(below, high + room, begin, end)


def round_numbers(low: float, high: float, about: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten.

    Args:
        low: The lower end.
        high: The upper end, above it.
        about: How many there should be.
    """
    power = 10.0 ** math.floor(math.log10((high - low) / about))
    step = next(
        power * factor for factor in (1, 2, 5, 10) if (high - low) / (power * factor) <= about + 2
    )
    first = math.ceil(low / step)
    last = math.floor(high / step)
    return [number * step for number in range(first, last + 1)]


def written(value: float) -> str:
    """A number as it is written at a point."""
    return f"{value:.6g}"


def labels(ticks: Sequence[float]) -> list[str]:
    """Write the numbers at an axis with as many digits as tell them apart.

    Args:
        ticks: Numbers, all different.
    """
    for digits in range(6, 18):
        texts = [f"{tick:.{digits}g}" for tick in ticks]
        if len({*texts}) == len(ticks):
            break
    return texts


def width_of(text: str) -> float:
    """Return the room that a label takes at most."""
    return CHARACTER * len(text)


def whole_ticks(axis: Axis, end: float, about: int) -> list[tuple[float, str]]:
    """Choose whole numbers to write below an axis, so few that their labels do not overlap.

    Args:
        axis: A horizontal axis that is not logarithmic.
        end: Where the page ends.
        about: How many there should be at most, about.

    Returns:
        Place and label of each.
    """
    for number in range(about, 0, -1):
        ticks = [tick for tick in round_numbers(axis.low, axis.high, number) if tick == int(tick)]
        found = [*zip(map(axis.place, ticks), labels(ticks), strict=True)] if ticks else []
        apart = all(
            right - left >= (width_of(first) + width_of(second)) / 2 + _BETWEEN
            for (left, first), (right, second) in itertools.pairwise(found)
        )
        if apart and all(place + width_of(text) / 2 <= end for place, text in found):
            return found
    return []
