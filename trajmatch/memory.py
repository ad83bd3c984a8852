"""Limits of memory, what to do when it runs out, and a single-thread context."""

import contextlib
import ctypes
import gc
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from trajmatch.errors import UserError, warn

if TYPE_CHECKING:
    import torch

S = TypeVar("S")
T = TypeVar("T")

# Parameters of mallopt, from glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_NEVER = 2**31 - 1
_LARGEST_BLOCK = 2**30


def keep_freed_memory() -> None:
    """Make glibc keep large freed blocks for reuse instead of returning them to the kernel.

    Only programs should call this, not libraries: the memory of the whole process no longer
    shrinks.
    """
    # By default glibc returns blocks of 32 MiB and more, and the kernel zeroes new blocks page by
    # page, which takes about half the time of a training step.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_BLOCK)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)


def available_memory() -> int:
    """Return the bytes that can be allocated without swapping, within the container's limit.

    On Linux this is the kernel's estimate, elsewhere the total memory of the machine.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * int(dict(line.split(":") for line in lines)["MemAvailable"].split()[0])
    except (OSError, KeyError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # no cgroup v2, or the limit is "max"
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        # The usage includes inactive page cache, which the kernel reclaims on demand.
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        free = min(free, limit - used + int(stat.get("inactive_file", 0)))
    return free


def check_memory(what: str, needed: int, advice: str) -> None:
    """Raise UserError ``WHAT take N GB ...; ADVICE`` if ``needed`` bytes are not available."""
    free = available_memory()
    if needed > free:
        raise UserError(
            f"{what} take {needed / 1e9:.1f} GB of memory, but {free / 1e9:.1f} GB are free; "
            f"{advice}"
        )


#: Out-of-memory messages of PyTorch, CUDA and the C++ library. The last one is raised for a
#: convolution if no cuDNN algorithm gets its workspace.
_OUT_OF_MEMORY = re.compile(
    "(?i)out of memory|not enough memory|can(not|'t) allocate memory|bad_alloc"
    "|alloc(ation)?_failed|unable to find an engine to execute"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return True for a failed allocation on the CPU or a GPU."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # Libraries raise a plain RuntimeError that only the message identifies.
    return isinstance(error, RuntimeError) and bool(_OUT_OF_MEMORY.search(str(error)))


def attempt(function: Callable[[], T]) -> tuple[T | None, str]:
    """Call a function; return ``(None, reason)`` if memory runs out."""
    try:
        return function(), ""
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        # Text only: the error's traceback would keep the tensors of the failed call alive.
        return None, str(error)


def release(device: "torch.device") -> None:
    """Free garbage, the engine's workspace and PyTorch's CUDA cache."""
    import torch

    from trajmatch import ops

    gc.collect()
    ops.release_workspace()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def in_groups(
    train: Callable[[Sequence[S]], T],
    members: Sequence[S],
    at_once: int,
    device: "torch.device",
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


def resident_memory() -> int:
    """Return the resident bytes of this process; 0 if the system does not tell."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def device_memory() -> int:
    """Return the bytes that this process has reserved on CUDA devices."""
    # Do not import torch or initialise CUDA, which would take time and memory.
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0
    return sum(torch.cuda.memory_reserved(device) for device in range(torch.cuda.device_count()))


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread inside the block, so that results do not depend on the number of threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
