"""Retries with less memory after an allocation has failed."""

import gc
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import torch

from trajmatch import ops
from trajmatch.errors import warn
from trajmatch.memory import is_out_of_memory

S = TypeVar("S")
T = TypeVar("T")


def attempt(function: Callable[[], T]) -> tuple[T | None, str]:
    """Call a function; return ``(None, reason)`` if memory runs out."""
    try:
        return function(), ""
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        # Text only: the error's traceback would keep the tensors of the failed call alive.
        return None, str(error) or "an allocation failed"


def retried(function: Callable[[], T], make_room: Callable[[], None]) -> T:
    """Call a function; if memory runs out, free some with ``make_room`` and call it again."""
    found, _ = attempt(function)
    if found is not None:
        return found
    make_room()
    return function()


def release(device: torch.device) -> None:
    """Free garbage, the engine's workspace and PyTorch's CUDA cache."""
    gc.collect()
    ops.release_workspace()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def in_groups(
    train: Callable[[Sequence[S]], T],
    members: Sequence[S],
    at_once: int,
    device: torch.device,
    what: str,
) -> Iterator[tuple[Sequence[S], T]]:
    """Yield groups of at most ``at_once`` members and their results; fewer if memory runs out.

    ``train`` computes the result of a group, and must allow a second call after a failed one.
    """
    while members:
        group = members[:at_once]
        found, reason = attempt(partial(train, group)) if len(group) > 1 else (train(group), "")
        if found is None:
            release(device)
            at_once = (len(group) + 1) // 2
            warn(
                f"memory ran out for {len(group)} {what} side by side; continuing with {at_once} "
                f"at a time, which is slower ({reason.splitlines()[0].split('. ')[0]})"
            )
            continue
        yield group, found
        members = members[len(group) :]
