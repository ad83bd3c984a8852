"""Time that is spent and time that is left, over several runs of the program."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from trajmatch import files
from trajmatch.errors import UserError


class SliceOver(Exception):
    """The time of this run is over; the state is on disk, and another run goes on."""


class Clock:
    """Keeps the budget.

    Work comes in pieces that are finished or not begun: some experts, some outer iterations, a
    network of the evaluation. A piece is begun when, judging by the last one of its part, it will
    be done in time; every run does at least one, so that it gets anywhere.

    Args:
        path: File of the state; what it holds is gone on with.
        budget: Seconds for everything, over all runs.
        slice_seconds: Seconds for this run; None for no such limit.
        now: What time it is, in seconds.
    """

    def __init__(
        self,
        path: Path,
        budget: float,
        slice_seconds: float | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self._budget, self._slice, self._now = path, budget, slice_seconds, now
        self._began = now()
        self._piece_began = self._began
        self._pieces_here = 0
        self._part = ""
        self.state: dict[str, Any] = files.read_json(path) if path.exists() else {}
        for name in ("seconds", "seconds_each"):
            self.state.setdefault(name, {})

    @property
    def spent(self) -> float:
        """Seconds of the budget that are spent, in all runs, the piece in hand included."""
        earlier: float = sum(self.state["seconds"].values())
        return earlier + self._now() - self._piece_began

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What is done meanwhile belongs to this part."""
        self._part = name
        yield
        self._book()

    def done(self, items: int = 1) -> None:
        """A piece of the current part is finished, and what it gave is on disk.

        Args:
            items: How many experts, iterations or networks it was.
        """
        self.state["seconds_each"][self._part] = self._book() / items
        self._pieces_here += 1
        self.save()

    def seconds_each(self) -> float:
        """Seconds of one item of the current part, by its last piece; 0 before the first."""
        seconds: float = self.state["seconds_each"].get(self._part, 0.0)
        return seconds

    def has_time(self, share: float, items: int = 1) -> bool:
        """Whether a piece of so many items ends before that share of the budget is spent.

        Raises:
            SliceOver: It would not end in this run.
        """
        expected = self.seconds_each() * items
        if self.spent + expected > share * self._budget:
            return False
        if self._slice is not None and self._pieces_here > 0:
            here = self._now() - self._began
            if here + expected > self._slice:
                raise SliceOver
        return True

    def save(self) -> None:
        """Writes the state."""
        files.write_json(self._path, self.state)

    def _book(self) -> float:
        """Books the time since the last piece on the current part, and gives it."""
        now = self._now()
        seconds, self._piece_began = now - self._piece_began, now
        parts = self.state["seconds"]
        parts[self._part] = parts.get(self._part, 0.0) + seconds
        return seconds


def duration(text: str) -> float:
    """Seconds of ``90s``, ``25m`` or ``1.5h``.

    Raises:
        UserError: It is no such duration, or not above 0.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if found is None or float(found[1]) == 0:
        raise UserError(f"a duration is a number with s, m or h, such as 25m, but is {text!r}")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]
