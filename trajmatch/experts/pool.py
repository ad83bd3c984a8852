"""Several worker processes that train the experts of one store together."""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

from trajmatch import interruption
from trajmatch.errors import UserError
from trajmatch.experts.store import Store
from trajmatch.experts.worker import THREADS

# An event of a worker (see trajmatch.experts.worker), or its exit status when there are no more.
_Event = dict[str, Any] | int


def work_together(
    store: Store,
    experts: Sequence[int],
    workers: int,
    device: str,
    on_epoch: Callable[[int, float], None],
    checkpoint_seconds: float = math.inf,
) -> None:
    """Trains experts in processes of their own; each process writes what it has finished.

    The workers are programs rather than forks: a fork of a process that has started threads may
    hang, and a ``multiprocessing`` child would run the caller's script again.

    Args:
        store: Where they belong.
        experts: Their numbers.
        workers: Processes.
        device: Where to train.
        on_epoch: Called with the expert's number and its mean training loss after every epoch.
        checkpoint_seconds: Seconds from one checkpoint of an unfinished expert to the next.

    Raises:
        UserError: An expert diverged, a file cannot be read or written, or a worker was killed,
            as happens when memory is short. The other workers are stopped.
        Interrupted: The run was stopped from outside. The workers have written checkpoints.
        RuntimeError: A worker failed; its own message is on the standard error stream.
    """
    events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
    processes: list[subprocess.Popen[str]] = []
    with contextlib.ExitStack() as stack:
        for share in range(workers):
            job = {
                "store": str(store.path),
                "experts": experts[share::workers],
                "device": device,
                "checkpoint_seconds": checkpoint_seconds,
            }
            processes.append(stack.enter_context(_worker(job, events)))
        stack.callback(_terminate, processes)  # all of them, before the first is waited for
        running = workers
        while running:
            event = _next_event(events)
            if isinstance(event, int):
                _check_status(event)
                running -= 1
            elif "error" in event:
                raise UserError(event["error"])
            else:
                on_epoch(event["expert"], event["loss"])


def _check_status(status: int) -> None:
    if status < 0:
        raise UserError(
            f"a process that trains experts was killed by signal {-status}; if memory is short, "
            "choose a smaller --workers or --batch-size, and go on with --resume"
        )
    if status > 0:
        raise RuntimeError(f"a process that trains experts failed with exit status {status}")


def _next_event(events: queue.SimpleQueue[_Event]) -> _Event:
    """Waits for an event, or for the time to be up."""
    while True:
        interruption.check()
        with contextlib.suppress(queue.Empty):
            return events.get(timeout=interruption.remaining())


def _terminate(processes: Sequence[subprocess.Popen[str]]) -> None:
    for process in processes:
        process.terminate()


@contextlib.contextmanager
def _worker(
    job: dict[str, Any], events: queue.SimpleQueue[_Event]
) -> Iterator[subprocess.Popen[str]]:
    """A running worker; leaving the context ends it, finished or not."""
    process = subprocess.Popen(
        [sys.executable, "-m", "trajmatch.experts.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(THREADS)},
        # ctrl-C in a terminal reaches this process only, which then ends its workers.
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None
    listener = threading.Thread(target=_listen, args=(process, process.stdout, events))
    listener.start()
    try:
        with contextlib.suppress(BrokenPipeError):  # it ended at once: its exit status says so
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()  # and stays open, which tells the worker that it is wanted
        yield process
    finally:
        process.terminate()
        process.wait()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        listener.join()
        process.stdout.close()


def _listen(
    process: subprocess.Popen[str], output: IO[str], events: queue.SimpleQueue[_Event]
) -> None:
    for line in output:
        events.put(json.loads(line))
    events.put(process.wait())
