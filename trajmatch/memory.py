"""Limits of memory, and a single-thread context."""

import contextlib
import ctypes
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from trajmatch.errors import UserError

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
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
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
    if needed > (free := available_memory()):
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


def resident_memory() -> int:
    """Return the resident bytes of this process; 0 if the system does not tell."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def device_memory() -> int:
    """Return the bytes that this process has reserved on CUDA devices."""
    # Do not import torch or initialise CUDA, which would take time and memory.
    if (torch := sys.modules.get("torch")) is None or not torch.cuda.is_initialized():
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
