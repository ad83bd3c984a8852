"""Processes of a run: rank, size and collectives.

Tensors go through torch.distributed (Gloo or NCCL), with a time limit. Results of rank 0 and
barriers go through the rendezvous store, without a time limit, because the other ranks may wait an
hour for an evaluation on rank 0. Neither way uses pickle.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from trajmatch.errors import UserError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

T = TypeVar("T")

#: Seconds between two polls of the store: at first, and at most.
_SHORTEST_LOOK, _LONGEST_LOOK = 0.001, 0.25

#: Key in the store that counts the ranks that have failed.
_FAILURE = "failure"


class LostRank(UserError):
    """Another process of the run has ended or does not answer."""


@contextmanager
def answering() -> Iterator[None]:
    """Turn errors of torch.distributed into a LostRank with advice."""
    try:
        yield
    except RuntimeError as error:
        # Keep only the reason: Gloo puts its source file before it, advice for developers after it.
        reason = str(error).splitlines()[0].split("] ", 1)[-1].partition(". ")[0]
        raise LostRank(
            "another process of this run has ended, or did not answer in time (`trajmatch "
            f"distill --timeout` sets the limit): {reason}. All files written so far are intact; "
            "continue with --resume"
        ) from error


class Ranks:
    """Processes of a run, as seen by one of them; this base class is a run of one process."""

    #: Number of this process; the first is 0.
    rank = 0
    #: Number of processes.
    size = 1

    @property
    def is_rank_0(self) -> bool:
        """True in the process that writes the shared files and prints."""
        return self.rank == 0

    def shard(self, items: Sequence[T]) -> list[T]:
        """Return the items of this rank; they are dealt out round-robin."""
        return list(items[self.rank :: self.size])

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Return the tensors of all ranks, in rank order; shapes and dtypes must be the same."""
        return [tensor]

    def sum_(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over all ranks; all ranks get the same bits."""

    def broadcast_(self, tensor: Tensor) -> None:
        """Replace a tensor by the tensor of rank 0."""

    def on_rank_0(self, function: Callable[[], Any]) -> Any:
        """Call a function on rank 0 only and broadcast its result, which must be a JSON value.

        The other ranks wait without a time limit. If the function raises UserError, all ranks raise
        it; if rank 0 has ended, the others raise LostRank.
        """
        return function()

    def counter(self) -> Callable[[], int]:
        """Return a counter that all ranks share: each call adds 1 and returns the new count."""
        return itertools.count(1).__next__

    def barrier(self) -> None:
        """Wait for all ranks, without a time limit; raise LostRank if one of them has failed."""

    def fail(self) -> bool:
        """Record a failure; return True in the first rank that fails, which reports the error."""
        return True


#: A single process.
ALONE = Ranks()


class DistributedRanks(Ranks):
    """Processes connected by torch.distributed, which exchange tensors on ``device``."""

    def __init__(self, store: Store, rank: int, size: int, device: torch.device) -> None:
        self.rank, self.size = rank, size
        self._store, self._device = store, device
        # All ranks call on_rank_0 and counter in the same order, so the number of the call is a key
        # that they agree on.
        self._results = self._counters = 0

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """See :class:`Ranks`."""
        # NCCL needs tensors on the GPU, Gloo on the CPU.
        sent = tensor.to(self._device).contiguous()
        received = [torch.empty_like(sent) for _ in range(self.size)]
        with answering():
            dist.all_gather(received, sent)
        return [each.to(tensor.device) for each in received]

    def sum_(self, tensor: Tensor) -> None:
        """See :class:`Ranks`; the tensor must be on the device of the process group."""
        with answering():
            dist.all_reduce(tensor)

    def broadcast_(self, tensor: Tensor) -> None:
        """See :class:`Ranks`; the tensor must be on the device of the process group."""
        with answering():
            dist.broadcast(tensor, 0)

    def on_rank_0(self, function: Callable[[], Any]) -> Any:
        """See :class:`Ranks`."""
        self._results += 1
        key = f"result/{self._results}"
        if not self.is_rank_0:
            answer = json.loads(self._wait_for(key))
            if "error" in answer:
                raise UserError(answer["error"])
            return answer["value"]
        # The waiting ranks need an answer even if the function raises UserError. After any other
        # error the run fails, which they notice by themselves.
        try:
            value = function()
        except UserError as error:
            self._store.set(key, json.dumps({"error": error.in_flags}))
            raise
        with answering():
            self._store.set(key, json.dumps({"value": value}))
        return value

    def counter(self) -> Callable[[], int]:
        """See :class:`Ranks`."""
        self._counters += 1
        return partial(self._add_one, f"count/{self._counters}")

    def barrier(self) -> None:
        """See :class:`Ranks`."""
        # The last rank to arrive opens the barrier.
        here = self.counter()
        key = f"barrier/{self._counters}"
        if here() == self.size:
            with answering():
                self._store.set(key, "all")
        self._wait_for(key)

    def fail(self) -> bool:
        """See :class:`Ranks`."""
        try:
            return self._add_one(_FAILURE) == 1
        except LostRank:
            # The store ended with the process that held it, perhaps before any rank reported.
            return True

    def _add_one(self, key: str) -> int:
        with answering():
            return self._store.add(key, 1)

    def _wait_for(self, key: str) -> bytes:
        # Poll, because a blocking wait would notice neither ctrl-C nor the failure of another rank.
        pause = _SHORTEST_LOOK
        with answering():
            while not self._store.check([key]):
                if self._store.check([_FAILURE]):
                    raise LostRank("another process of this run has failed")
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_LOOK)
            return self._store.get(key)


def first_that_differs(ranks: Ranks, checksum: str) -> int | None:
    """Return the first rank whose checksum, hexadecimal, is not rank 0's; None if all agree."""
    sent = torch.tensor(list(bytes.fromhex(checksum)), dtype=torch.uint8)
    first, *others = ranks.gather(sent)
    return next((rank for rank, each in enumerate(others, 1) if not torch.equal(each, first)), None)
