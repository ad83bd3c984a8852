"""Signals and time limits: where they stop a program, and what the program says then."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from trajmatch import interruption
from trajmatch.errors import UserError
from trajmatch.interruption import Interrupted, check, held, released, signals, time_limit


def send(number: signal.Signals) -> None:
    """Sends this process a signal and lets Python's handler run."""
    os.kill(os.getpid(), number)
    time.sleep(0)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_stops_at_once_what_is_not_held(number: signal.Signals, status: int) -> None:
    with pytest.raises(Interrupted) as stop, signals():
        send(number)
    assert (stop.value.cause, stop.value.status) == (number.name, status)


def test_a_signal_waits_for_the_check_of_what_is_held() -> None:
    done = []
    with signals(), pytest.raises(Interrupted), held():
        send(signal.SIGTERM)
        done.append("the iteration")
        check()
        done.append("another iteration")
    assert done == ["the iteration"]


def test_released_work_is_stopped_at_once_and_held_again_afterwards() -> None:
    with signals(), held():
        with released():
            pass
        send(signal.SIGTERM)  # waits
        with pytest.raises(Interrupted), released():
            raise AssertionError("was begun in spite of the signal")
    with signals(), held(), pytest.raises(Interrupted), released():
        send(signal.SIGTERM)


def test_the_second_ctrl_c_does_not_wait() -> None:
    with signals(), held():
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_a_second_sigterm_changes_nothing() -> None:
    with signals(), held():
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        with pytest.raises(Interrupted):
            check()


def test_handlers_are_put_back_and_ignored_signals_stay_ignored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with signals():
            assert signal.getsignal(signal.SIGTERM) != before
            send(signal.SIGHUP)
        assert signal.getsignal(signal.SIGTERM) == before
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, ignored)


def test_a_library_call_has_no_handlers() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with held():
        assert signal.getsignal(signal.SIGTERM) == before
        check()


def test_in_another_thread_there_are_no_signals() -> None:
    seen = []

    def body() -> None:
        with signals():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]


def test_the_earliest_limit_counts_and_ends_with_its_block(monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr(interruption.time, "monotonic", lambda: now[0])
    with time_limit("1m"):
        with time_limit("1h"):
            assert interruption.remaining() == 60
        with time_limit("5s"), time_limit(None):
            now[0] = 104.9
            check()
            now[0] = 105.0
            with pytest.raises(Interrupted) as stop:
                check()
        check()
    assert interruption.remaining() is None
    assert (stop.value.cause, stop.value.status) == ("--max-time", 75)


def test_time_counts_from_the_beginning_of_the_program(monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr(interruption.time, "monotonic", lambda: now[0])
    with signals():
        now[0] = 130.0  # spent on loading
        with time_limit("1m"):
            assert interruption.remaining() == 30


@pytest.mark.parametrize(
    ("text", "wanted"), [("45s", 45), ("90m", 5400), ("1h30m", 5400), ("2d", 172800)]
)
def test_durations(text: str, wanted: float) -> None:
    assert interruption.seconds(text) == wanted


@pytest.mark.parametrize("text", ["", "90", "0m", "1.5h", "-1h", "1h30", "h", "1 h", "1w"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UserError, match="--max-time should be a duration such as 90m"):
        interruption.seconds(text)
