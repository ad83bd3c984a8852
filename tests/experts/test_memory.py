"""Freed memory is kept for the next use."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, sys
from trajmatch.memory import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
c = ctypes.CDLL(None)
c.malloc.restype = ctypes.c_void_p
for _ in range(10):
    block = ctypes.c_void_p(c.malloc(ctypes.c_size_t(2**26)))
    c.memset(block, 1, ctypes.c_size_t(2**26))
    c.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


def page_faults(argument: str) -> int:
    command = [sys.executable, "-c", PROGRAM, argument]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc"
)
def test_a_block_of_memory_is_faulted_in_once() -> None:
    assert page_faults("keep") < 0.5 * page_faults("leave")
