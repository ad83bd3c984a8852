"""The processes of a run as one of them sees them: who it is, and how it exchanges tensors.

Tensors go through a process group of torch.distributed (Gloo on the CPU, NCCL on CUDA), in every
iteration and with a time limit. What is said now and then (has the writer finished?) goes through
the key-value store by which the processes found each other, without a limit: a rank may evaluate
for an hour. There is no pickle in either.
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

#: Seconds between two looks into the key-value store: at first, and after a while.
_SHORTEST_LOOK, _LONGEST_LOOK = 0.001, 0.25

_FAILURE = "failure"


class LostRank(UserError):
    """Another process of the run has ended, or does not answer."""


@contextmanager
def answering() -> Iterator[None]:
    """Turns torch.distributed's errors into one that says what to do."""
    try:
        yield
    except RuntimeError as error:
        # Gloo puts its source file before what happened, and advice for its developers behind.
        reason = str(error).splitlines()[0].split("] ", 1)[-1].partition(". ")[0]
        raise LostRank(
            "another process of this run has ended, or did not answer in time (distill --timeout): "
            f"{reason}. What was written is whole; go on with --resume"
        ) from error


class Ranks:
    """The processes of a run; this class itself is one process that works alone.

    Attributes:
        rank: Number of this process, from 0.
        size: How many there are.
    """

    rank = 0
    size = 1

    @property
    def is_writer(self) -> bool:
        """Whether this is the process that writes the files that all share, and that tells."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """What this process takes of some items: every so-manieth, beginning with its number."""
        return list(items[self.rank :: self.size])

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all processes, by rank; shapes and dtypes must be the same."""
        return [tensor]

    def sum_(self, tensor: Tensor) -> None:
        """Replaces a tensor by its sum over all processes, the same bits in each."""

    def copy_from_writer_(self, tensor: Tensor) -> None:
        """Replaces a tensor by the writer's."""

    def from_writer(self, function: Callable[[], Any]) -> Any:
        """Calls a function in the writer alone; the others wait for it, however long it takes.

        Args:
            function: Returns what JSON can hold, floats exactly.

        Returns:
            Its result, in every process.

        Raises:
            UserError: The function raised it; all processes do.
            LostRank: The writer has ended.
        """
        return function()

    def counter(self) -> Callable[[], int]:
        """A counter that all processes share: a call adds one and returns what it is then."""
        return itertools.count(1).__next__

    def meet(self) -> None:
        """Waits until all processes are here, however long that takes.

        Raises:
            LostRank: One of them has ended before.
        """

    def fail(self) -> bool:
        """Notes that the run fails; whether this process is the first to do so, and should tell."""
        return True


#: One process that works alone.
ALONE = Ranks()


class DistributedRanks(Ranks):
    """Processes that torch.distributed has joined.

    Args:
        store: Where they found each other.
        rank: Number of this process.
        size: How many there are.
        device: Where the tensors go from and to: what the process group's backend needs.
    """

    def __init__(self, store: Store, rank: int, size: int, device: torch.device) -> None:
        self.rank, self.size = rank, size
        self._store, self._device = store, device
        # Calls that all processes make in the same order have keys by their number.
        self._told = self._counters = 0

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

    def copy_from_writer_(self, tensor: Tensor) -> None:
        """See :class:`Ranks`; the tensor must be on the device of the process group."""
        with answering():
            dist.broadcast(tensor, 0)

    def from_writer(self, function: Callable[[], Any]) -> Any:
        """See :class:`Ranks`."""
        self._told += 1
        key = f"told/{self._told}"
        if not self.is_writer:
            answer = json.loads(self._wait_for(key))
            if "error" in answer:
                raise UserError(answer["error"])
            return answer["value"]
        try:
            value = function()
        except UserError as error:
            self._store.set(key, json.dumps({"error": error.args[0]}))
            raise
        with answering():
            self._store.set(key, json.dumps({"value": value}))
        return value

    def counter(self) -> Callable[[], int]:
        """See :class:`Ranks`."""
        self._counters += 1
        return partial(self._add_one, f"count/{self._counters}")

    def meet(self) -> None:
        """See :class:`Ranks`."""
        here = self.counter()
        key = f"met/{self._counters}"
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
        """The value of a key, when it is there.

        It looks again and again rather than wait in the store, so that ctrl-C is heard.
        """
        pause = _SHORTEST_LOOK
        with answering():
            while not self._store.check([key]):
                if self._store.check([_FAILURE]):
                    raise LostRank("another process of this run has failed")
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_LOOK)
            return self._store.get(key)


def first_that_differs(ranks: Ranks, parts: Iterable[Tensor | str]) -> int | None:
    """Compares what should be the same in all processes.

    Args:
        ranks: The processes.
        parts: Texts and tensors of one dimension or more.

    Returns:
        The first process whose bytes are not those of the writer; None where all are the same.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            digest.update(part.encode())
        else:
            digest.update(part.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    first, *others = ranks.gather(torch.tensor(list(digest.digest()), dtype=torch.uint8))
    for rank, other in enumerate(others, start=1):
        if not torch.equal(other, first):
            return rank
    return None
