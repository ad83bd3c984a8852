"""Memory that really runs out, in a process that may not have more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trajmatch import ops
from trajmatch.memory import is_out_of_memory

#: Memory that is left to a run: its activations do not fit into it, all else does.
ROOM = 48 * 2**20

RUN = """
import resource, sys, warnings
from pathlib import Path
import torch
from trajmatch.distill import DistillConfig, distill
from trajmatch.out_of_memory import release

store, folder, device, room = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
torch.set_num_threads(1)

def run(name):
    config = DistillConfig(
        experts=Path(store), out=Path(folder, name), ipc=12, iterations=2, student_steps=150,
        expert_epochs=1, max_start_epoch=3, lr_img=10.0, device=device, snapshots=0,
    )
    distill(config)
    release(torch.device(device))

run("enough")
if device == "cpu":
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + room, size + room))
else:
    whole = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(
        (torch.cuda.memory_reserved(device) + room) / whole, device
    )
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    run("short")
print([str(each.message) for each in caught])
"""


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is that of Linux")
def test_a_run_that_runs_out_of_memory_goes_on_without_kept_activations(
    make_store, tmp_path: Path, device: str
) -> None:
    store = make_store("wide", width=32, depth=2)
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(store), str(tmp_path), device, str(ROOM)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "memory ran out (" in done.stdout
    assert "continuing, now keeping no activations" in done.stdout
    if device == "cpu":
        assert (tmp_path / "enough").read_bytes() == (tmp_path / "short").read_bytes()


def too_large(device: str) -> torch.Tensor:
    """2^44 elements in the memory of one; a copy of them is 64 TiB."""
    return torch.zeros(1, device=device).expand(2**44)


def test_the_text_of_an_allocation_that_fails_in_the_engine_is_kept(device) -> None:
    vector = too_large(device)
    with pytest.raises(RuntimeError, match="torch call failed: aten::contiguous: ") as failure:
        ops.param_distance(vector, vector, vector)
    assert is_out_of_memory(failure.value)


def test_allocations_that_fail_are_told_from_other_errors(device) -> None:
    with pytest.raises(RuntimeError) as failure:
        too_large(device).contiguous()
    assert is_out_of_memory(failure.value)
    with pytest.raises(RuntimeError) as failure:
        torch.zeros(2, device=device) @ torch.zeros(3, device=device)
    assert not is_out_of_memory(failure.value)
    assert not is_out_of_memory(ValueError("the word was: out of memory"))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("trajmatch: the launch of dsa_kernel failed: out of memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_what_libraries_say_where_memory_runs_out(error: Exception) -> None:
    assert is_out_of_memory(error)
