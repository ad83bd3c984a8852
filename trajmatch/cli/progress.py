"""Shows the progress of long-running functions: a live bar on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING

from trajmatch.memory import device_memory, resident_memory
from trajmatch.progress import NoProgress, ProgressLike, duration

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

__all__ = ["NoProgress", "Progress", "ProgressLike"]

SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Progress on the standard error stream, as a context manager.

    Shows how much is done, the latest numbers, the rate, the time that is left, and the memory that
    the process takes. On a terminal this is a bar that changes in place, with the numbers below it;
    elsewhere (a file, a pipe) a line every few seconds.

    Args:
        total: Units of work in all.
        title: What the work is.
        quiet: Whether to show nothing.
        console: Where to show it, if not on the standard error stream.
    """

    def __init__(
        self, total: int, title: str, quiet: bool = False, *, console: Console | None = None
    ) -> None:
        self._total = total
        self._title = title
        self._quiet = quiet
        self._console = console
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None
        self._first: tuple[float, int] | None = None  # time and work done at the first update
        self._last_line = float("-inf")

    def __enter__(self) -> Progress:
        if not self._quiet:
            from rich.console import Console

            self._console = self._console or Console(stderr=True)
            if self._console.is_terminal:
                self._bar = _bar(self._console)
                self._task = self._bar.add_task(self._title, total=self._total, pace="", below="")
                self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, **numbers: float) -> None:
        """Shows how far the work is.

        Args:
            done: Units of work that are finished, those of earlier, interrupted runs included.
            numbers: Latest values to show, by name.
        """
        if self._quiet:
            return
        now = time.monotonic()
        self._first = self._first or (now, done)
        latest = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in numbers.items()]
        pace = self._pace(now, done)
        if self._bar is not None and self._task is not None:
            below = "  ".join(latest + _memory())
            self._bar.update(self._task, completed=done, pace="  ".join(pace), below=below)
        elif self._console and (
            done >= self._total or now - self._last_line >= SECONDS_BETWEEN_LINES
        ):
            self._last_line = now
            line = [f"{self._title} {done}/{self._total}", *latest, *pace, *_memory()]
            self._console.out("  ".join(line))

    def _pace(self, now: float, done: int) -> list[str]:
        """Rate and time left, from what was done since the first update."""
        assert self._first is not None
        seconds, units = now - self._first[0], done - self._first[1]
        if seconds <= 0 or units <= 0:
            return []
        rate = units / seconds
        pace = f"{rate:.3g}/s" if rate >= 1 else f"{1 / rate:.3g} s each"
        if done >= self._total:
            return [pace, f"{duration(seconds)} in all"]
        return [pace, f"{duration((self._total - done) / rate)} left"]


def _memory() -> list[str]:
    """Main memory and, where one is used, that of the GPU."""
    parts = {"memory": resident_memory(), "GPU": device_memory()}
    return [f"{name} {_size(count)}" for name, count in parts.items() if count]


def _size(count: int) -> str:
    """``512 MB`` or ``3.2 GB``."""
    return f"{count / 2**30:.1f} GB" if count >= 2**30 else f"{count / 2**20:.0f} MB"


def _bar(console: Console) -> RichProgress:
    from rich.console import RenderableType
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    class WithNumbersBelow(RichProgress):
        """A bar with a line below it, which has the room that a narrow terminal denies the bar."""

        def get_renderables(self) -> Iterator[RenderableType]:
            yield self.make_tasks_table(self.tasks)
            for task in self.tasks:
                if task.fields["below"]:
                    yield Text("  " + task.fields["below"], overflow="ellipsis", no_wrap=True)

    return WithNumbersBelow(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[pace]}", markup=False),
        console=console,
        refresh_per_second=4,  # a thread redraws it, on a processor that has other work
    )
