"""Progress of long-running functions: a live bar on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from trajmatch.memory import device_memory, resident_memory
from trajmatch.progress import duration

if TYPE_CHECKING:
    from rich.console import Console

SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Progress on the standard error stream, as a context manager.

    Shows how much is done, the rate, the time that is left, the latest numbers, and the memory that
    the process takes. On a terminal this is a bar that changes in place, with the numbers below it;
    elsewhere (a file, a pipe) a line every few seconds.

    Args:
        total: Units of work in all.
        title: Name of the work.
        quiet: True to show nothing.
        console: Where to show it, if not on the standard error stream.
    """

    def __init__(
        self, total: int, title: str, quiet: bool = False, *, console: Console | None = None
    ) -> None:
        from rich import progress
        from rich.console import Console, RenderableType
        from rich.text import Text

        class WithNumbersBelow(progress.Progress):
            """A bar with a line below it, which has the room that a narrow terminal lacks."""

            def get_renderables(self) -> Iterator[RenderableType]:
                yield from super().get_renderables()
                for task in self.tasks:
                    yield Text(task.fields["below"], overflow="ellipsis", no_wrap=True)

        self._console = console or Console(stderr=True)
        self._total, self._title, self._quiet = total, title, quiet
        self._first: tuple[float, int] | None = None  # time and units done at the first update
        self._last_line = float("-inf")
        self._bar = WithNumbersBelow(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=24),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[pace]}", markup=False),
            console=self._console,
            refresh_per_second=4,  # a thread redraws it, on a processor that has other work
            disable=quiet or not self._console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=total, pace="", below="")

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def update(self, done: int, **numbers: float) -> None:
        """Show how far the work is.

        Args:
            done: Units of work that are finished, those of earlier, interrupted runs included.
            numbers: Latest values to show, by name.
        """
        if self._quiet:
            return
        now = time.monotonic()
        # The units that are done at the first call may be of an earlier run.
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
