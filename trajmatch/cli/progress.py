"""Progress display: a live bar on a terminal, lines of text elsewhere."""

import time
from collections.abc import Iterator
from typing import Self

from rich import progress
from rich.console import Console, RenderableType
from rich.text import Text

from trajmatch.memory import device_memory, resident_memory
from trajmatch.progress import duration

SECONDS_BETWEEN_LINES = 5.0


class _WithNumbersBelow(progress.Progress):
    """A bar with the numbers below it, because a narrow terminal lacks room beside it."""

    def get_renderables(self) -> Iterator[RenderableType]:
        """Yield the bar and the line of numbers."""
        yield from super().get_renderables()
        for task in self.tasks:
            yield Text(task.fields["below"], overflow="ellipsis", no_wrap=True)


class Progress:
    """Progress display on stderr, as a context manager.

    Shows the units of work done out of ``total``, the rate, the remaining time, the latest numbers
    and the memory of the process. A terminal shows a bar with the numbers below it; a file or pipe
    gets a line every few seconds. ``console`` replaces stderr.
    """

    def __init__(
        self, total: int, title: str, quiet: bool = False, *, console: Console | None = None
    ) -> None:
        self._console = console or Console(stderr=True)
        self._total, self._title, self._quiet = total, title, quiet
        self._first: tuple[float, int] | None = None  # time and units done at the first update
        self._last_line = float("-inf")
        self._bar = _WithNumbersBelow(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=24),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[pace]}", markup=False),
            console=self._console,
            # A thread redraws the bar and takes time from the computation, so redraw rarely.
            refresh_per_second=4,
            disable=quiet or not self._console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=total, pace="", below="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def update(self, done: int, **numbers: float) -> None:
        """Show the units of work done (earlier, interrupted runs included) and ``numbers``."""
        if self._quiet:
            return
        now = time.monotonic()
        # The units at the first call may come from an interrupted run, so the rate excludes them.
        began, before = self._first = self._first or (now, done)
        shown = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in numbers.items()]
        memory = {"memory": resident_memory(), "GPU": device_memory()}
        shown += [f"{name} {size >> 20} MB" for name, size in memory.items() if size]
        finished, pace = done >= self._total, []
        if now > began and done > before:
            rate = (done - before) / (now - began)
            left = f"{duration((self._total - done) / rate)} left"
            pace = [
                f"{rate:.3g}/s" if rate >= 1 else f"{1 / rate:.3g} s each",
                f"{duration(now - began)} in all" if finished else left,
            ]
        below = "  ".join(["", *shown])
        self._bar.update(self._task, completed=done, pace="  ".join(pace), below=below)
        if not self._console.is_terminal and (
            finished or now - self._last_line >= SECONDS_BETWEEN_LINES
        ):
            self._last_line = now
            self._console.out("  ".join([f"{self._title} {done}/{self._total}", *pace, *shown]))
