"""Progress of long-running functions.

They call ``update`` of the object they are given; :mod:`trajmatch.cli.progress` shows it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class ProgressLike(Protocol):
    """A receiver of progress."""

    def update(self, done: int, **numbers: float) -> None:
        """Take how far the work is.

        Args:
            done: Units of work that are finished, those of earlier, interrupted runs included.
            numbers: Latest values of interest, e.g. ``loss``.
        """


class NoProgress:
    """A receiver that ignores it."""

    def update(self, done: int, **numbers: float) -> None:
        """Do nothing."""


#: Opens a display of progress for one stage of several, given its units of work and its title.
Stages = Callable[[int, str], AbstractContextManager[ProgressLike]]


def silent(total: int, title: str) -> AbstractContextManager[ProgressLike]:
    """Stages without a display."""
    return nullcontext(NoProgress())


def duration(seconds: float) -> str:
    """``7 s``, ``1:07`` or ``1:01:07``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
