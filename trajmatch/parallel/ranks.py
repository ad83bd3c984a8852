"""Processes of a run: rank, size and collectives.

Tensors go through torch.distributed (Gloo or NCCL), with a time limit. Rare messages (results of
rank 0, barriers) go through the rendezvous store without one, since a rank may evaluate for an
hour. Neither uses pickle.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
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

#: Seconds between two polls of the store: at first, and after a while.
_SHORTEST_LOOK, _LONGEST_LOOK = 0.001, 0.25

_FAILURE = "failure"


class LostRank(UserError):
    """Another process of the run has ended or does not answer."""


@contextmanager
def answering() -> Iterator[None]:
    """Turn errors of torch.distributed into a LostRank that says what to do."""
    try:
        yield
    except RuntimeError as error:
        # Gloo puts its source file before the reason, and advice for developers after it.
        reason = str(error).splitlines()[0].split("] ", 1)[-1].partition(". ")[0]
        raise LostRank(
            "another process of this run has ended, or did not answer in time (distill --timeout): "
            f"{reason}. What was written is whole; go on with --resume"
        ) from error


class Ranks:
    """Processes of a run, seen from rank ``rank`` of ``size``; this class is a single process."""

    rank = 0
    size = 1

    @property
    def is_rank_0(self) -> bool:
        """True in the process that writes the shared files and prints."""
        return self.rank == 0

    def shard(self, items: Sequence[T]) -> list[T]:
        """Return the items of this rank, dealt out round-robin."""
        return list(items[self.rank :: self.size])

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Return the tensors of all ranks, in order; shapes and dtypes must be the same."""
        return [tensor]

    def sum_(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over all ranks, the same bits on each."""

    def broadcast_(self, tensor: Tensor) -> None:
        """Replace a tensor by that of rank 0."""

    def on_rank_0(self, function: Callable[[], Any]) -> Any:
        """Call a function on rank 0 alone and broadcast its result, a JSON value; no time limit.

        A UserError of the function is raised on all ranks. LostRank if rank 0 has ended.
        """
        return function()

    def counter(self) -> Callable[[], int]:
        """Return a counter shared by all ranks: each call adds one and returns the sum."""
        return itertools.count(1).__next__

    def barrier(self) -> None:
        """Wait for all ranks, without a time limit; LostRank if one of them has failed."""

    def fail(self) -> bool:
        """Record that the run fails; True in the first rank that does, which reports it."""
        return True


#: A single process.
ALONE = Ranks()


class DistributedRanks(Ranks):
    """Processes that torch.distributed has joined; ``device`` is that of its backend."""

    def __init__(self, store: Store, rank: int, size: int, device: torch.device) -> None:
        self.rank, self.size = rank, size
        self._store, self._device = store, device
        # All ranks make these calls in the same order, so call numbers serve as keys.
        self._results = self._counters = 0

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """See :class:`Ranks`."""
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
        here = self.counter()  # the last rank to arrive opens the barrier
        key = f"barrier/{self._counters}"
        if here() == self.size:
            with answering():
                self._store.set(key, "all")
        self._wait_for(key)

    def fail(self) -> bool:
        """See :class:`Ranks`."""
        try:
            return self._add_one(_FAILURE) == 1
        except LostRank:  # the store has ended with the process that held it
            return True

    def _add_one(self, key: str) -> int:
        with answering():
            return self._store.add(key, 1)

    def _wait_for(self, key: str) -> bytes:
        pause = _SHORTEST_LOOK  # poll, because a blocking wait would not notice ctrl-C
        with answering():
            while not self._store.check([key]):
                if self._store.check([_FAILURE]):
                    raise LostRank("another process of this run has failed")
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_LOOK)
            return self._store.get(key)


def first_that_differs(ranks: Ranks, parts: Iterable[Tensor | str]) -> int | None:
    """Return the first rank whose parts differ from rank 0's in any byte; None if none does."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            digest.update(part.encode())
        else:  # a view as bytes needs at least one dimension
            digest.update(part.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    first, *others = ranks.gather(torch.tensor(list(digest.digest()), dtype=torch.uint8))
    for rank, other in enumerate(others, start=1):
        if not torch.equal(other, first):
            return rank
    return None
