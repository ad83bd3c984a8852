"""Memory and threads of a program: what is free, what it keeps, how many it computes on."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

# Parameters of mallopt, from glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_NEVER = 2**31 - 1
_LARGEST_BLOCK = 2**30


def keep_freed_memory() -> None:
    """Makes the C library keep large blocks for the next use, where it is glibc.

    By default it gives blocks of 32 MiB and more back to the kernel and gets new ones, zeroed page
    by page when they are first touched. A training step frees and wants the same blocks again and
    again; without this about half of its time goes there. For programs, not for a library: it
    concerns the whole process, whose size does not shrink any more.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, _LARGEST_BLOCK)
            mallopt(_M_TRIM_THRESHOLD, _NEVER)


def available_memory() -> int:
    """Bytes that a program can still get without swapping, within the limit of its container.

    Returns:
        What the kernel estimates where it is Linux; elsewhere all memory of the machine.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * int(dict(line.split(":") for line in lines)["MemAvailable"].split()[0])
    except (OSError, KeyError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # no such group, or its limit is "max"
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        # What the group's files take in the page cache is given back on demand.
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        free = min(free, limit - used + int(stat.get("inactive_file", 0)))
    return free


def resident_memory() -> int:
    """Bytes of main memory that this process takes now; 0 where the system does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def device_memory() -> int:
    """Bytes that this process has reserved on CUDA devices, 0 where it uses none.

    Torch is not loaded and no device is touched to find that out.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0
    return sum(torch.cuda.memory_reserved(device) for device in range(torch.cuda.device_count()))


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Computes on one thread inside the block, so that sums have one order on every machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
