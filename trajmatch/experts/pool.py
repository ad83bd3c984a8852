"""Several worker processes that train the experts of one store together."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

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

    Raises:
        UserError: An expert diverged, a file cannot be read or written, or a worker was killed,
            as happens when memory is short. The other workers are stopped.
        RuntimeError: A worker failed; its own message is on the standard error stream.
    """
    events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
    with contextlib.ExitStack() as stack:
        for share in range(workers):
            job = {"store": str(store.path), "experts": experts[share::workers], "device": device}
            stack.enter_context(_worker(job, events))
        running = workers
        while running:
            event = events.get()
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


@contextlib.contextmanager
def _worker(job: dict[str, Any], events: queue.SimpleQueue[_Event]) -> Iterator[None]:
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
            process.stdin.close()
        yield
    finally:
        process.terminate()
        process.wait()
        listener.join()
        process.stdout.close()


def _listen(
    process: subprocess.Popen[str], output: IO[str], events: queue.SimpleQueue[_Event]
) -> None:
    for line in output:
        events.put(json.loads(line))
    events.put(process.wait())
