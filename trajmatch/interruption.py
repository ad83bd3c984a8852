"""Stop requests for a run: signal handlers and time limits.

Programs enter :func:`signals` to turn signals into :class:`Interrupted`. Inside :func:`held`, a
signal waits until the code, after writing a checkpoint, calls :func:`check`.
"""

import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from trajmatch.errors import UserError

#: Exit status after a time limit: ``EX_TEMPFAIL`` of sysexits.h, "try again".
OUT_OF_TIME = 75

#: Exit status after SIGTERM.
ENDED = 128 + signal.SIGTERM

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


class Interrupted(BaseException):
    """Request to stop the run; a BaseException, so that ``except Exception`` does not catch it.

    Attributes:
        cause: Name of the cause, e.g. ``"SIGTERM"``.
        status: Exit status: 128 plus the signal number, or :data:`OUT_OF_TIME`.
        kept: Message about the saved state; empty if nothing was saved.
        resumes: True if ``--resume`` continues from the saved state.
    """

    def __init__(self, cause: str, status: int) -> None:
        super().__init__(cause)
        self.cause, self.status, self.kept, self.resumes = cause, status, "", True


class _Watch:
    """State of this process: start time, deadline and pending signal."""

    began: float | None = None  # time of entering signals()
    deadline: float | None = None
    pending: Interrupted | None = None
    held = False

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal; ignore a second one, except ctrl-C, which raises KeyboardInterrupt."""
        if self.pending is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.pending = Interrupted(signal.Signals(number).name, 128 + number)
        if not self.held:
            raise self.pending


_watch = _Watch()


@contextmanager
def signals() -> Iterator[None]:
    """Make ctrl-C, SIGTERM and SIGHUP raise :class:`Interrupted` inside the block.

    Ignored signals (``nohup``) stay ignored. Outside the main thread, which alone receives signals,
    this has no effect.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    outer, _watch.began, _watch.pending = _watch.began, time.monotonic(), None
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, _watch.on_signal)
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: a handler that was not installed from Python
                signal.signal(number, handler)
        _watch.began, _watch.pending = outer, None


@contextmanager
def time_limit(text: str | None) -> Iterator[None]:
    """Make :func:`check` raise after a duration such as ``90m`` (see :func:`seconds`).

    None sets no limit. The time counts from the start of :func:`signals` or, outside of it, from
    the start of this context. If limits are nested, the earliest applies. Raises UserError for an
    invalid duration.
    """
    outer = _watch.deadline
    if text is not None:
        began = time.monotonic() if _watch.began is None else _watch.began
        own = began + seconds(text)
        _watch.deadline = own if outer is None else min(own, outer)
    try:
        yield
    finally:
        _watch.deadline = outer


@contextmanager
def held(wait: bool = True) -> Iterator[None]:
    """Delay signals inside the block until :func:`check` is called, so that no work stops halfway.

    With ``wait=False``, signals are not delayed.
    """
    before, _watch.held = _watch.held, wait
    try:
        yield
    finally:
        _watch.held = before


@contextmanager
def released() -> Iterator[None]:
    """Let signals stop the block at any point, even inside :func:`held`.

    Raises :class:`Interrupted` at once if a stop is pending.
    """
    with held(wait=False):
        check()
        yield


def check() -> None:
    """Raise :class:`Interrupted` if a signal is pending or the time is up."""
    if (stop := wish()) is not None:
        raise stop


def wish() -> Interrupted | None:
    """Return the exception that :func:`check` would raise, or None."""
    left = remaining()
    # A signal has priority over the time limit.
    if _watch.pending is None and left is not None and left <= 0:
        return Interrupted("--max-time", OUT_OF_TIME)
    return _watch.pending


def remaining() -> float | None:
    """Return the seconds until the deadline; None without a :func:`time_limit`."""
    return None if _watch.deadline is None else _watch.deadline - time.monotonic()


def seconds(text: str) -> float:
    """Convert a duration such as ``90m``, ``1h30m``, ``2d`` or ``45s`` to seconds.

    Raises UserError for any other text, and for zero.
    """
    parts = re.findall(r"(\d{1,9})([dhms])", text, re.ASCII)
    total = sum(int(number) * _UNITS[unit] for number, unit in parts)
    # The parts must make up the whole text: findall skips characters that do not fit.
    if total == 0 or "".join(number + unit for number, unit in parts) != text:
        raise UserError(
            f"--max-time should be a duration such as 90m, 1h30m or 2d (d, h, m, s), but is "
            f"{text!r}"
        )
    return float(total)
