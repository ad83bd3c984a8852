"""Several worker processes that train the experts of one store together."""

from __future__ import annotations

import math
from collections.abc import Sequence

from trajmatch.children import Failed, children
from trajmatch.errors import UserError
from trajmatch.experts.store import Store
from trajmatch.experts.trajectory import OnEpoch
from trajmatch.experts.worker import THREADS, work_on


def work_together(
    store: Store,
    experts: Sequence[int],
    workers: int,
    device: str,
    on_epoch: OnEpoch,
    checkpoint_seconds: float = math.inf,
    test_every: int = 0,
) -> None:
    """Train experts in child processes; each process writes what it has finished.

    Args:
        store: Store of the experts.
        experts: Numbers of the experts.
        workers: Number of processes.
        device: Device that trains.
        on_epoch: Called for each expert after every epoch.
        checkpoint_seconds: Seconds from one checkpoint of an unfinished expert to the next.
        test_every: Epochs from one test to the next; 0 chooses.

    Raises:
        UserError: An expert diverged, a file cannot be read or written, or a worker was killed,
            as happens when memory is short. The other workers are stopped.
        Interrupted: The run was stopped from outside. The workers have written checkpoints.
        RuntimeError: A worker failed; its own message is on the standard error stream.
    """
    jobs = [
        {
            "store": str(store.path),
            "experts": experts[share::workers],
            "device": device,
            "checkpoint_seconds": checkpoint_seconds,
            "test_every": test_every,
        }
        for share in range(workers)
    ]
    try:
        with children(work_on, jobs, {"OMP_NUM_THREADS": str(THREADS)}) as events:
            for event in events:
                on_epoch(event["expert"], event["numbers"])
    except Failed as failure:
        if failure.status > 0:
            raise RuntimeError(
                f"a process that trains experts failed with exit status {failure.status}"
            ) from failure
        raise UserError(
            f"a process that trains experts was killed by signal {-failure.status}; if memory is "
            "short, choose a smaller --workers or --batch-size, and go on with --resume"
        ) from failure
