"""Joining of the processes that torchrun has started."""

from __future__ import annotations

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

#: Exit status of a process when another one reports the failure.
_FAILED = 2

#: Seconds that this process waits first: torchrun ends all processes as soon as one ends.
_GRACE = 10.0


def is_launched() -> bool:
    """True if torchrun started this process as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ["WORLD_SIZE"]) > 1


def local_device(device: str) -> str:
    """Return the device of this process: under torchrun the GPU of its local rank, for cuda."""
    if not is_launched() or not device.startswith("cuda"):
        return device
    if device != "cuda":
        raise UserError(
            f"--device {device} is one GPU for all processes of torchrun; say --device cuda, and "
            "each takes the GPU of its own number"
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
    """Join the processes of a run while the context lasts.

    Without torchrun, yield :data:`~trajmatch.parallel.ranks.ALONE`.

    If the run fails, one process raises the error and the others exit silently with status 2 (or
    that of an interruption). Only rank 0 shows warnings, because the other ranks would repeat them.
    ``timeout`` is the limit of a collective in seconds. LostRank if other processes did not come.
    """
    if not is_launched():
        yield ALONE
        return
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(device)
    with answering():
        store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=DEFAULT_TIMEOUT)))
        # A restart must not read what an earlier attempt wrote.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"trajmatch/{attempt}", store)  # type: ignore[attr-defined]
    ranks = DistributedRanks(store, rank, size, torch.device(device if on_gpu else "cpu"))
    ranks.barrier()  # no time limit: ranks may start at very different times
    with answering():
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=timeout),
        )
    try:
        with warnings.catch_warnings():
            if not ranks.is_rank_0:
                warnings.simplefilter("ignore")
            yield ranks
    except BaseException as error:
        # Leave the process group alone: other ranks may hang in it, and this process ends anyway.
        if ranks.fail():
            raise
        if isinstance(error, Exception):  # no wait after ctrl-C, which reaches all ranks
            with suppress(Interrupted):  # torchrun ends this process with a signal
                time.sleep(_GRACE)
        status = error.status if isinstance(error, Interrupted) else _FAILED
        raise SystemExit(status) from error
    dist.destroy_process_group()
