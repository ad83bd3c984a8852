"""What the machine is: device, driver, compilers, versions."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
from importlib import metadata
from typing import Any

from gpu_stages.settings import Record, Settings

PACKAGES = ("torch", "triton", "jax", "numpy", "pytest", "pytest-benchmark", "setuptools")


def run(settings: Settings, record: Record) -> None:
    """Collects the facts; a GPU that torch does not see is a fault."""
    record.put("versions", {"python": platform.python_version()} | versions())
    record.put("programs", {name: version_line(name) for name in ("nvcc", "g++", "nvidia-smi")})
    record.put("cpu", cpu())
    import torch

    record.put("cuda_of_torch", torch.version.cuda)
    record.put("cudnn", torch.backends.cudnn.version())
    if settings.device == "cpu":
        record.put("device", cpu())
        return
    if not torch.cuda.is_available():
        record.fault(f"torch {torch.__version__} sees no GPU")
        return
    record.put("device", torch.cuda.get_device_name())
    properties = torch.cuda.get_device_properties(0)
    record.put(
        "gpu",
        {
            "capability": f"{properties.major}.{properties.minor}",
            "memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size,
            "driver": gpu_query("driver_version"),
            "sm_clock": gpu_query("clocks.sm"),
            "sm_clock_max": gpu_query("clocks.max.sm"),
        },
    )


def versions() -> dict[str, str | None]:
    """The installed releases of what the stages use; None for what is missing."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def version_line(program: str) -> str | None:
    """The line of ``program --version`` that has the number, or None where it is not installed."""
    if shutil.which(program) is None:
        return None
    answer = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    lines = [line.strip() for line in answer.stdout.splitlines() if any(map(str.isdigit, line))]
    return lines[-1] if program == "nvcc" and lines else (lines[0] if lines else None)


def gpu_query(field: str) -> str | None:
    """What nvidia-smi says of the first GPU, or None where it does not answer."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip().partition("\n")[0] or None


def cpu() -> dict[str, Any]:
    """The processor's name and how many there are."""
    names: list[str] = []
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {"name": names[0] if names else platform.processor(), "processors": os.cpu_count()}
