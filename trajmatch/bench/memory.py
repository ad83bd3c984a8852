"""Peak memory of a variant, in a process of its own, and what it would be after more steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from trajmatch.bench.process import measure_peak
from trajmatch.bench.sizes import Size
from trajmatch.bench.timing import LinearFit, fit_line

#: A variant that needs more than this is not run; see :func:`limit_bytes`.
LARGEST = 20 * 10**9
#: Part of the memory that is free which a variant may use.
PART_OF_FREE = 0.6
#: Numbers of steps at which memory is measured to predict it.
STEPS = (1, 3)


def limit_bytes(device: str) -> int:
    """Memory that a variant may need here: 20 GB, or 60 % of what is free, whichever is less."""
    return min(LARGEST, int(PART_OF_FREE * _free_bytes(device)))


def memory_over_steps(
    size: Size, variant: str, device: str, steps: Sequence[int] = STEPS
) -> dict[str, Any]:
    """Measures the peak memory of a variant at a few numbers of steps.

    Args:
        size: The size; its own number of steps is not used.
        variant: Name of the variant.
        device: Where it runs.
        steps: Numbers of steps, at least two.

    Returns:
        ``steps``; ``peaks``, what :func:`trajmatch.bench.process.measure_peak` gives at each;
        ``intercept`` and ``slope``, in bytes, of the line through the peaks. Or ``unavailable``:
        why the variant does not run.
    """
    measured = []
    for count in steps:
        measured.append(measure_peak(size.with_steps(count), variant, device))
        if "unavailable" in measured[-1]:
            return measured[-1]
    line = fit_line(steps, [each["peak_bytes"] for each in measured])
    return {
        "steps": list(steps),
        "peaks": measured,
        "intercept": line.intercept,
        "slope": line.slope,
    }


def predicted_bytes(memory: dict[str, Any], steps: int) -> int:
    """Peak memory after that many steps, by the line of :func:`memory_over_steps`."""
    return round(LinearFit(memory["intercept"], memory["slope"], 0.0).at(steps))


def _free_bytes(device: str) -> int:
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    lines = Path("/proc/meminfo").read_text().splitlines()
    (available,) = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return min(int(available) * 1024, *_control_group_bytes())


def _control_group_bytes() -> list[int]:
    """What the container that this runs in leaves, where it has a limit."""
    try:
        folder = Path("/sys/fs/cgroup")
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
    except OSError:
        limit = "max"
    return [2**63] if limit == "max" else [int(limit) - used]
