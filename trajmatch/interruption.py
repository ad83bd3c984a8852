"""Stopping a run from outside: by a signal, or because the time it was given is up.

Nothing here happens by itself. A program that wants its signals handled enters :func:`signals`; a
function that works on something which must not be left in the middle enters :func:`held`, in which
a signal waits until the function asks with :func:`check`, writes what is needed to go on, and lets
:class:`Interrupted` through. Everywhere else the signal raises it at once.
"""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from trajmatch.errors import UserError

#: Exit status of a run whose time was up: ``EX_TEMPFAIL`` of sysexits.h, "try again".
OUT_OF_TIME = 75

#: Exit status of a run that a signal ended: that of SIGTERM.
ENDED = 128 + signal.SIGTERM

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


class Interrupted(BaseException):
    """A request to stop the run. Like ``KeyboardInterrupt``, it is not an error to catch.

    Attributes:
        cause: What stopped it, e.g. ``"SIGTERM"``.
        status: The exit status that says so: 128 and the signal's number, or
            :data:`OUT_OF_TIME`.
        kept: The state on the disk, for people; empty where nothing was written for that.
        resumes: True if ``--resume`` goes on from there, in commands that have that flag.
    """

    def __init__(self, cause: str, status: int) -> None:
        super().__init__(cause)
        self.cause, self.status, self.kept, self.resumes = cause, status, "", True


class _Watch:
    """State of this process: when it began, its deadline, and a signal that is pending."""

    began: float | None = None  # of the program that handles signals
    deadline: float | None = None
    pending: Interrupted | None = None
    held = False

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal; a second ctrl-C does not wait for what the first one waits for."""
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
    """Make ctrl-C, SIGTERM and SIGHUP stop the program by :class:`Interrupted`.

    A signal that the program was started to ignore (``nohup``) is ignored as before. Outside of the
    main thread, which alone hears of signals, this does nothing.
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
            if handler is not None:  # None: it was not installed from Python
                signal.signal(number, handler)
        _watch.began, _watch.pending = outer, None


@contextmanager
def time_limit(text: str | None) -> Iterator[None]:
    """Let :func:`check` raise when a time is up.

    It is counted from when the program began to handle :func:`signals`, or else from here. Of
    several limits the earliest counts.

    Args:
        text: As for :func:`seconds`; None sets no limit.

    Raises:
        UserError: It is no duration.
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
    """Make signals wait for :func:`check`, so that work under way is not left in the middle."""
    before, _watch.held = _watch.held, wait
    try:
        yield
    finally:
        _watch.held = before


@contextmanager
def released() -> Iterator[None]:
    """Inside of :func:`held`: work that changes nothing, and may be stopped in the middle.

    Raises:
        Interrupted: At once, if there was a signal already or the time is up.
    """
    with held(wait=False):
        check()
        yield


def check() -> None:
    """Stop here if the run was asked to.

    Raises:
        Interrupted: There was a signal, or the time is up.
    """
    stop = wish()
    if stop is not None:
        raise stop


def wish() -> Interrupted | None:
    """Return what :func:`check` would raise, or None."""
    left = remaining()
    if _watch.pending is None and left is not None and left <= 0:
        return Interrupted("--max-time", OUT_OF_TIME)
    return _watch.pending


def remaining() -> float | None:
    """Seconds until the time is up; None without a :func:`time_limit`."""
    return None if _watch.deadline is None else _watch.deadline - time.monotonic()


def seconds(text: str) -> float:
    """Convert a duration such as ``90m``, ``1h30m``, ``2d`` or ``45s``.

    Args:
        text: Numbers, each with its unit: d, h, m or s.

    Raises:
        UserError: It is no such text, or nothing at all.
    """
    parts = re.findall(r"(\d{1,9})([dhms])", text, re.ASCII)
    total = sum(int(number) * _UNITS[unit] for number, unit in parts)
    if total == 0 or "".join(number + unit for number, unit in parts) != text:
        raise UserError(
            f"--max-time should be a duration such as 90m, 1h30m or 2d (d, h, m, s), but is "
            f"{text!r}"
        )
    return float(total)
