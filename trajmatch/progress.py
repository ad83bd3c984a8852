"""Interface through which long-running functions report progress."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class ProgressLike(Protocol):
    """Receiver of progress."""

    def update(self, done: int, **numbers: float) -> None:
        """Receive the units of work done, earlier runs included, and numbers such as ``loss``."""


class NoProgress:
    """Receiver that ignores progress."""

    def update(self, done: int, **numbers: float) -> None:
        """Do nothing."""


#: Function that opens the progress display of a stage, given the units of work and the title.
Stages = Callable[[int, str], AbstractContextManager[ProgressLike]]


def silent(total: int, title: str) -> AbstractContextManager[ProgressLike]:
    """Return a stage without a display."""
    return nullcontext(NoProgress())


def duration(seconds: float) -> str:
    """Format seconds as ``7 s``, ``1:07`` or ``1:01:07``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
