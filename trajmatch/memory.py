"""How a program of ours treats the memory that it no longer needs."""

from __future__ import annotations

import ctypes
import sys

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
