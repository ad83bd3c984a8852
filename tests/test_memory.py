"""What a process is told about its own memory."""

from __future__ import annotations

import mmap
import subprocess
import sys
import types

import pytest

from trajmatch.memory import device_memory, resident_memory


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system does not say")
def test_resident_memory_grows_with_what_is_touched() -> None:
    before = resident_memory()
    with mmap.mmap(-1, 2**26) as held:  # from the system, whatever the C library has kept
        held.write(b"x" * 2**20 * 64)
        assert len(held) <= resident_memory() - before + 2**22
    assert before > 2**24


def test_device_memory_loads_no_torch_and_is_nothing_without_a_gpu() -> None:
    code = "import sys, trajmatch.memory as m; print(m.device_memory(), *sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, *modules = told.stdout.split()
    assert count == "0" and "torch" not in modules


def test_device_memory_is_that_of_all_devices(monkeypatch) -> None:
    cuda = types.SimpleNamespace(
        is_initialized=lambda: True,
        device_count=lambda: 2,
        memory_reserved=lambda device: 10 + device,
    )
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))
    assert device_memory() == 21
