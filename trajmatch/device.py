"""Choice of the compute device, reasons why it is unusable, and measurement of its memory."""

import ctypes
import os
import re
from pathlib import Path

import torch

from trajmatch._extension import Fault, build_info, compile_again, missing_kernels
from trajmatch.errors import UserError, as_user_error
from trajmatch.memory import available_memory, resident_memory

#: Minimum compute capability of the CUDA kernels.
LEAST_CAPABILITY = (7, 5)

#: Library of the CUDA driver, already loaded by torch if a GPU is usable.
DRIVER = "libcuda.so.1"


def usable_device(name: str) -> str:
    """Return the device for a value of ``--device``: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises UserError if there is no such device or it cannot be used.
    """
    if name == "auto":
        return automatic_device()[0]
    if name == "cpu":
        return name
    if (number := re.fullmatch(r"cuda(?::(\d{1,4}))?", name)) is None:
        raise UserError(
            f"--device should be auto, cpu, cuda or cuda:N, but is {name!r}; available: "
            f"{_devices()}"
        )
    fault = cuda_fault(None if number[1] is None else int(number[1]))
    if fault is not None:
        raise UserError(f"--device {name} cannot be used: {fault}")
    return name


def automatic_device() -> tuple[str, str]:
    """Return the device for ``auto`` (a GPU if one is usable, else the CPU) and the reason.

    The variable ``TRAJMATCH_DEVICE`` overrides the choice; the reason is then "". Raises UserError
    if that device is unusable.
    """
    if (named := os.environ.get("TRAJMATCH_DEVICE", "auto")) != "auto":
        with as_user_error("TRAJMATCH_DEVICE: "):
            return usable_device(named), ""
    if (fault := cuda_fault()) is not None:
        return "cpu", fault.why
    # The processes of torchrun use GPUs only if the machine has one for each process.
    processes, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if processes > gpus:
        return "cpu", f"there are {processes} processes but only {gpus} GPUs"
    return "cuda", torch.cuda.get_device_name()


def cuda_fault(index: int | None = None) -> Fault | None:
    """Return the reason why the GPU (default: the current one) cannot be used; None if it can."""
    # The order matters: each check relies on the checks before it.
    build = build_info()
    if torch.version.cuda is None:
        then = "" if build["cuda"] else f", then: {compile_again(build)}"
        return Fault(
            f"torch {torch.__version__} was built without CUDA",
            f"Install a torch with CUDA{then}",
        )
    gpus = torch.cuda.device_count()
    if gpus == 0:
        return Fault(
            "torch sees no GPU",
            "Check that nvidia-smi lists a GPU and that CUDA_VISIBLE_DEVICES does not hide it",
        )
    if index is not None and index >= gpus:
        return Fault(f"there is no cuda:{index}", f"Available: {_devices()}")
    if (missing := missing_kernels()) is not None:
        return missing
    try:
        torch.cuda.init()
    except RuntimeError as error:  # e.g. a driver that is too old for torch
        return Fault(f"torch cannot use the GPU: {str(error).splitlines()[0]}", "See nvidia-smi")
    return _kernel_fault(torch.cuda.current_device() if index is None else index)


def reset_peak(device: str | torch.device) -> bool:
    """Reset :func:`peak_bytes`; return False if the system cannot reset the peak of a process."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    # Writing 5 resets VmHWM, the peak of the resident memory, on Linux.
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_bytes(device: str | torch.device) -> int:
    """Return the peak memory in bytes: of PyTorch's allocator on a GPU, else of this process."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(dict(line.split(":") for line in lines)["VmHWM"].split()[0])


def used_bytes(device: str | torch.device) -> int:
    """Return the bytes in use now, whose peak is :func:`peak_bytes`."""
    if torch.device(device).type == "cuda":
        return torch.cuda.memory_allocated(device)
    return resident_memory()


def free_bytes(device: str | torch.device) -> int:
    """Return the free bytes of a GPU, PyTorch's cache included, or :func:`available_memory`."""
    if torch.device(device).type == "cuda":
        # PyTorch's allocator can reuse its cache.
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return available_memory()


def _kernel_fault(index: int) -> Fault | None:
    """Return the reason why the built kernels do not run on a GPU; None if they do."""
    build = build_info()
    nvcc = tuple(map(int, build["cuda"].split(".")))
    driver = _driver_release()
    # Machine code needs a driver of the same or a later major release of CUDA.
    if driver[0] < nvcc[0]:
        return Fault(
            f"the kernels were compiled by nvcc {build['cuda']}, but the driver is made for CUDA "
            f"{driver[0]}.{driver[1]}",
            f"Install a newer driver; or set CUDA_HOME to a toolkit of CUDA {driver[0]}, then: "
            f"{compile_again(build)}",
        )
    capability = torch.cuda.get_device_capability(index)
    # The driver compiles PTX only if nvcc, which wrote the PTX, was not newer than the driver.
    if any(_covers(each, capability, driver >= nvcc) for each in build["architectures"]):
        return None
    number_of_it = f"{capability[0]}.{capability[1]}"
    gpu = f"{torch.cuda.get_device_name(index)}, of compute capability {number_of_it}"
    if capability < LEAST_CAPABILITY:
        return Fault(f"the kernels do not run on {gpu}", "They need 7.5 or later")
    return Fault(
        f"the kernels were compiled for {', '.join(build['architectures'])} and not for {gpu}",
        f"Compile them: {compile_again(build, f'TORCH_CUDA_ARCH_LIST={number_of_it} ')}",
    )


def _driver_release() -> tuple[int, int]:
    """Return the CUDA release of the driver, e.g. ``(13, 0)``."""
    number = ctypes.c_int()
    ctypes.CDLL(DRIVER).cuDriverGetVersion(ctypes.byref(number))
    return number.value // 1000, number.value % 1000 // 10


def _covers(architecture: str, capability: tuple[int, int], takes_ptx: bool) -> bool:
    """Return True if code built for ``architecture`` runs on a GPU of this compute capability."""
    number, _, ptx = architecture.partition("+")
    major, minor = map(int, number.rstrip("af").split("."))
    if number.endswith("a"):  # e.g. 9.0a: runs on that capability only
        return (major, minor) == capability
    # Machine code runs on later minors of the same major; PTX on all later GPUs.
    same = major == capability[0] and minor <= capability[1]
    return same or bool(ptx and takes_ptx and (major, minor) <= capability)


def _devices() -> str:
    """List the devices of this machine for a message."""
    gpus = torch.cuda.device_count() if torch.version.cuda else 0
    fault = cuda_fault()
    names = ", ".join(["cpu", *(f"cuda:{index}" for index in range(gpus))])
    return names if fault is None else f"{names} ({fault.why})"
