"""Training of some experts of a store; as a program, one of several processes that share a store.

``python -m trajmatch.experts.worker`` reads one JSON line with the store, the experts and the
device, and prints one JSON line for every event: ``{"expert": i, "loss": x}`` after an epoch,
``{"error": text}`` for a mistake of the user. It stops when nobody reads its output any more.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from trajmatch.data import Dataset, load_dataset
from trajmatch.errors import UserError
from trajmatch.experts.store import Store
from trajmatch.experts.trajectory import train_lockstep
from trajmatch.memory import keep_freed_memory

#: Threads that train an expert on the CPU. The same number everywhere: a convolution's weight
#: gradient is summed in another order on another number of threads, and one is the number every
#: machine has.
THREADS = 1


def work(
    store: Store,
    training: Dataset,
    experts: Sequence[int],
    device: str,
    on_epoch: Callable[[int, float], None],
    at_once: int = 1,
) -> None:
    """Trains experts, one group after another, and writes each when its group is finished.

    Args:
        store: Where they belong.
        training: What they see.
        experts: Their numbers.
        device: Where to train.
        on_epoch: Called with the expert's number and its mean training loss after every epoch.
        at_once: Experts of a group, which are trained in lockstep.

    Raises:
        UserError: An expert diverged, or its file cannot be written.
    """
    with _threads(THREADS):
        for first in range(0, len(experts), at_once):
            group = experts[first : first + at_once]
            trained = train_lockstep(store.manifest, training, group, device, on_epoch)
            for expert, (snapshots, metrics, buffers) in zip(group, trained, strict=True):
                store.write_expert(expert, snapshots, metrics, buffers)


def main() -> int:
    """Runs the program; returns its exit status."""
    keep_freed_memory()
    # A plain SIGTERM would leave the temporary file of a write in progress behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # What a library prints must not come between the events.
    channel = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def tell(**event: Any) -> None:
        os.write(channel, (json.dumps(event) + "\n").encode())

    job = json.loads(sys.stdin.readline())
    try:
        store = Store.open(Path(job["store"]), complete=False)
        with warnings.catch_warnings(action="ignore"):  # who started this has given them
            dataset = load_dataset(store.manifest["data"])
        training, _, _ = store.training_set(dataset)
        work(
            store,
            training,
            job["experts"],
            job["device"],
            lambda expert, loss: tell(expert=expert, loss=loss),
        )
    except UserError as error:
        tell(error=str(error))
        return 2
    except BrokenPipeError:  # who started this is gone
        return 1
    return 0


@contextlib.contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


if __name__ == "__main__":
    sys.exit(main())
