"""The machine: device, driver, compilers, versions."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib import metadata

from gpu_stages.settings import Record, Settings

PACKAGES = ("torch", "triton", "jax", "numpy", "pytest", "setuptools")
PROGRAMS = ("nvcc", "g++", "nvidia-smi")


def run(settings: Settings, record: Record) -> None:
    """Collect the facts; a GPU that torch does not see is a fault."""

    installed = {each.name: each.version for each in metadata.distributions()}
    record.put("versions", {"python": platform.python_version()})
    for name in PACKAGES:
        record.content["versions"][name] = installed.get(name)
    record.put("programs", {name: answer(name, "--version") for name in PROGRAMS})
    model = answer("grep", "-m1", "model name", "/proc/cpuinfo")
    record.put("cpu", {"name": model, "processors": os.cpu_count()})
    import torch

    record.put("cuda_of_torch", torch.version.cuda)
    record.put("cudnn", torch.backends.cudnn.version())
    if settings.device == "cpu":
        return
    if not torch.cuda.is_available():
        record.fault(f"torch {torch.__version__} sees no GPU")
        return
    properties = torch.cuda.get_device_properties(0)
    query = "--query-gpu=driver_version,clocks.sm,clocks.max.sm"
    record.put("device", torch.cuda.get_device_name())
    record.put(
        "gpu",
        {
            "capability": f"{properties.major}.{properties.minor}",
            "memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size,
            "driver, clocks": answer("nvidia-smi", query, "--format=csv,noheader"),
        },
    )


def answer(program: str, *arguments: str) -> str | None:
    """Return what a program prints; None where it is not installed."""
    if shutil.which(program) is None:
        return None
    command = [program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
