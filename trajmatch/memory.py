"""Memory and threads of a program: what is free, what it keeps, how many it computes on."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from trajmatch.errors import UserError

if TYPE_CHECKING:
    import torch

# Parameters of mallopt, from glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_NEVER = 2**31 - 1
_LARGEST_BLOCK = 2**30


def keep_freed_memory() -> None:
    """Make the C library keep large blocks for the next use, where it is glibc.

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
    """Return the bytes still free without swapping, within the limit of the container.

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


def check_memory(what: str, needed: int, advice: str) -> None:
    """Refuse what does not fit into the free memory, before any of it is allocated.

    Args:
        what: Name of what takes the memory, for the message; a plural.
        needed: Its size in bytes.
        advice: Remedy, for the message.

    Raises:
        UserError: There is less memory.
    """
    free = available_memory()
    if needed > free:
        raise UserError(
            f"{what} take {needed / 1e9:.1f} GB of memory, but {free / 1e9:.1f} GB are free; "
            f"{advice}"
        )


def reset_peak(device: str | torch.device) -> bool:
    """Forget the peak of memory so far.

    Args:
        device: The CPU for the process, a GPU for PyTorch's allocator there.

    Returns:
        True where the system allows that; otherwise :func:`peak_bytes` is of the whole life.
    """
    import torch

    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_bytes(device: str | torch.device) -> int:
    """Return the peak of memory so far: of PyTorch's allocator on a GPU, else of this process."""
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(dict(line.split(":") for line in lines)["VmHWM"].split()[0])


def used_bytes(device: str | torch.device) -> int:
    """Return the memory in use now, whose peak :func:`peak_bytes` is."""
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.memory_allocated(device)
    return resident_memory()


def free_bytes(device: str | torch.device) -> int:
    """Return the free memory: :func:`available_memory`, or that of a GPU."""
    import torch

    if torch.device(device).type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return available_memory()


#: Texts of exceptions of PyTorch, CUDA and the C++ library that say that an allocation failed, in
#: lower case. The convolution library tries its algorithms one after another, and gives up with the
#: last text where none gets its workspace.
_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "bad_alloc",
    "alloc_failed",
    "allocation_failed",
    "unable to find an engine to execute",
)


def is_out_of_memory(error: BaseException) -> bool:
    """True for an exception of an allocation that failed, on the CPU or on a GPU.

    Only some of these exceptions have a class of their own: the others are told by their text.
    """
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    message = str(error).lower()
    return isinstance(error, RuntimeError) and any(text in message for text in _OUT_OF_MEMORY)


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
    """Compute on one thread inside the block, so that sums have one order on every machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
