"""The device that a user names: whether it is there, and whether the kernels run on it."""

from __future__ import annotations

import ctypes
import os
import re

import torch

from trajmatch._extension import REINSTALL, Fault, build_info, missing_kernels
from trajmatch.errors import UserError, as_user_error

#: The least compute capability that the CUDA kernels run on.
LEAST_CAPABILITY = (7, 5)

#: The driver's library, which torch has loaded where it can use a GPU.
DRIVER = "libcuda.so.1"


def usable_device(name: str) -> str:
    """The device to compute on, which is there and which the kernels run on.

    Args:
        name: Value of ``--device``: ``auto`` (:func:`automatic_device`), ``cpu``, ``cuda`` or
            ``cuda:N``.

    Returns:
        The name; for ``auto`` what it stands for here.

    Raises:
        UserError: There is no such device, or it cannot be used.
    """
    if name == "auto":
        return automatic_device()[0]
    if name == "cpu":
        return name
    number = re.fullmatch(r"cuda(?::(\d{1,4}))?", name)
    if number is None:
        raise UserError(
            f"--device should be auto, cpu, cuda or cuda:N, but is {name!r}; here is {_devices()}"
        )
    fault = cuda_fault(None if number[1] is None else int(number[1]))
    if fault is not None:
        raise UserError(f"--device {name} cannot be used: {fault}")
    return name


def automatic_device() -> tuple[str, str]:
    """The device that ``auto`` stands for: a GPU where one can be used, else the CPU.

    The environment variable ``TRAJMATCH_DEVICE`` names another. Several processes of torchrun on
    one machine take GPUs only if there is one for each.

    Returns:
        The device, and the reason for it; "" where the user named it.

    Raises:
        UserError: ``TRAJMATCH_DEVICE`` names no device that can be used.
    """
    named = os.environ.get("TRAJMATCH_DEVICE", "auto")
    if named != "auto":
        with as_user_error("TRAJMATCH_DEVICE: "):
            return usable_device(named), ""
    fault = cuda_fault()
    if fault is not None:
        return "cpu", fault.why
    processes, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if processes > gpus:
        return "cpu", f"{processes} processes, but {gpus} GPUs"
    return "cuda", torch.cuda.get_device_name()


def cuda_fault(index: int | None = None) -> Fault | None:
    """The reason why a GPU cannot be used, and what mends it; None where it can.

    Args:
        index: Its number; None for the current one.
    """
    if torch.version.cuda is None:
        return Fault(
            f"torch {torch.__version__} was built without CUDA",
            f"Install a torch with CUDA, then, in the source folder of trajmatch: `{REINSTALL}`",
        )
    gpus = torch.cuda.device_count()
    if gpus == 0:
        return Fault(
            "torch sees no GPU", "nvidia-smi shows those of the driver; see CUDA_VISIBLE_DEVICES"
        )
    if index is not None and index >= gpus:
        return Fault(f"there is no cuda:{index}", f"Here is {_devices()}")
    missing = missing_kernels()
    if missing is not None:
        return missing
    try:
        torch.cuda.init()
    except RuntimeError as error:  # e.g. a driver that is too old for torch
        return Fault(f"torch cannot use the GPU: {str(error).splitlines()[0]}", "See nvidia-smi")
    return _kernel_fault(torch.cuda.current_device() if index is None else index)


def _kernel_fault(index: int) -> Fault | None:
    """The reason why the kernels of the build do not run on a GPU that torch can use."""
    build = build_info()
    nvcc = tuple(map(int, build["cuda"].split(".")))
    driver = _driver_release()
    if driver[0] < nvcc[0]:
        return Fault(
            f"the kernels were compiled by nvcc {build['cuda']}, but the driver is made for CUDA "
            f"{driver[0]}.{driver[1]}",
            f"Install a newer driver; or set CUDA_HOME to a toolkit of CUDA {driver[0]}, and then, "
            f"in the source folder of trajmatch: `{REINSTALL}`",
        )
    capability = torch.cuda.get_device_capability(index)
    if any(_covers(each, capability, driver >= nvcc) for each in build["architectures"]):
        return None
    number_of_it = f"{capability[0]}.{capability[1]}"
    gpu = f"{torch.cuda.get_device_name(index)}, of compute capability {number_of_it}"
    if capability < LEAST_CAPABILITY:
        return Fault(f"the kernels do not run on {gpu}", "They need 7.5 or later")
    return Fault(
        f"the kernels were compiled for {', '.join(build['architectures'])} and not for {gpu}",
        f"In the source folder of trajmatch: `TORCH_CUDA_ARCH_LIST={number_of_it} {REINSTALL}`",
    )


def _driver_release() -> tuple[int, int]:
    """The CUDA release that the driver is made for, e.g. ``(13, 0)``."""
    number = ctypes.c_int()
    ctypes.CDLL(DRIVER).cuDriverGetVersion(ctypes.byref(number))
    return number.value // 1000, number.value % 1000 // 10


def _covers(architecture: str, capability: tuple[int, int], takes_ptx: bool) -> bool:
    """True if code for an architecture of the build runs on a GPU of this compute capability."""
    number, _, ptx = architecture.partition("+")
    major, minor = map(int, number.rstrip("af").split("."))
    if number.endswith("a"):  # runs on that GPU alone
        return (major, minor) == capability
    same = major == capability[0] and minor <= capability[1]
    return same or bool(ptx and takes_ptx and (major, minor) <= capability)


def _devices() -> str:
    """The devices of this machine, for a reader."""
    gpus = torch.cuda.device_count() if torch.version.cuda else 0
    fault = cuda_fault()
    names = ", ".join(["cpu", *(f"cuda:{index}" for index in range(gpus))])
    return names if fault is None else f"{names} ({fault.why})"
