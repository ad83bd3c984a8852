"""Connection of the processes that torchrun has started."""

import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from trajmatch.errors import UserError
from trajmatch.interruption import Interrupted
from trajmatch.parallel.ranks import ALONE, DistributedRanks, Ranks, answering

#: Default time limit of a collective, in seconds.
DEFAULT_TIMEOUT = 600.0

#: Exit status of a failed process if another process reports the failure.
_FAILED = 2

#: Seconds that a process waits before it exits with ``_FAILED``. As soon as one process ends,
#: torchrun ends all of them, including the process that is about to report the failure.
_GRACE = 10.0


def is_launched() -> bool:
    """Return True if torchrun started this process as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ["WORLD_SIZE"]) > 1


def local_device(device: str) -> str:
    """Return the device of this process; under torchrun, ``cuda`` is the GPU of its local rank."""
    if not is_launched() or not device.startswith("cuda"):
        return device
    if device != "cuda":
        raise UserError(
            f"--device {device} would put all processes of torchrun on one GPU; use --device "
            "cuda: each process then takes the GPU of its local rank"
        )
    local, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= count:
        raise UserError(
            f"torchrun started {os.environ['LOCAL_WORLD_SIZE']} processes on a machine that has "
            f"{count} GPUs; choose a smaller --nproc-per-node, or --device cpu"
        )
    return f"cuda:{local}"


@contextmanager
def joined(device: str, timeout: float = DEFAULT_TIMEOUT) -> Iterator[Ranks]:
    """Connect the processes of a run inside the context, and yield their :class:`Ranks`.

    Without torchrun, yield :data:`~trajmatch.parallel.ranks.ALONE`. A collective may take
    ``timeout`` seconds. LostRank is raised if another process does not connect in time. If the run
    fails, one process raises the error; the others exit silently, with status 2 or the status of an
    interruption. Only rank 0 shows warnings.
    """
    if not is_launched():
        yield ALONE
        return
    if on_gpu := device.startswith("cuda"):
        torch.cuda.set_device(device)
    with answering():
        store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=DEFAULT_TIMEOUT)))
        # Separate keys for each attempt: after a restart by torchrun, the store still has the
        # keys of the attempt that failed.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"trajmatch/{attempt}", store)  # type: ignore[attr-defined]
    ranks = DistributedRanks(store, rank, size, torch.device(device if on_gpu else "cpu"))
    # Ranks may start at very different times. This barrier waits for them without a time limit,
    # which init_process_group would not do.
    ranks.barrier()
    backend, limit = "nccl" if on_gpu else "gloo", timedelta(seconds=timeout)
    with answering():
        dist.init_process_group(backend, timeout=limit, world_size=size, rank=rank, store=store)
    try:
        with warnings.catch_warnings():
            # The other ranks would repeat the warnings of rank 0.
            if not ranks.is_rank_0:
                warnings.simplefilter("ignore")
            yield ranks
    except BaseException as error:
        # Do not destroy the process group: that could wait for ranks that hang in a collective, and
        # the process ends anyway.
        if ranks.fail():
            raise
        # Give the rank that reports the error time to do so. But ctrl-C, which is not an Exception,
        # reaches all ranks, so there is nothing to wait for. During the wait, torchrun ends this
        # process with a signal, which raises Interrupted.
        if isinstance(error, Exception):
            with suppress(Interrupted):
                time.sleep(_GRACE)
        raise SystemExit(error.status if isinstance(error, Interrupted) else _FAILED) from error
    dist.destroy_process_group()
