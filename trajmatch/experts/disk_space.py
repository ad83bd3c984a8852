"""Disk space of experts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from trajmatch import networks
from trajmatch.errors import UserError

_BYTES = {"float32": 4, "bfloat16": 2}


def check_disk_space(path: Path, manifest: dict[str, Any], experts: int) -> str:
    """Make sure that experts of a store will fit on the disk.

    Args:
        path: The folder of the store, which is there.
        manifest: Its description.
        experts: Number of experts that are still to be written.

    Returns:
        The space that they need and that is free, in words.

    Raises:
        UserError: They will not fit.
    """
    model = networks.build(manifest["network"])
    numbers = networks.num_parameters(model) + networks.num_buffers(model)
    last = manifest.get("trained_epochs", manifest["snapshots"][-1])
    snapshots = sum(epoch <= last for epoch in manifest["snapshots"])
    each = snapshots * numbers * _BYTES[manifest["dtype"]]
    if last < manifest["snapshots"][-1]:  # parameters and memory of the optimiser, to go on from
        each += numbers * 4 * (3 if manifest["recipe"]["optimiser"] == "adam" else 2)
    needed, free = experts * each, shutil.disk_usage(path).free
    space = (
        f"{experts} experts of {snapshots} snapshots: {needed / 1e9:.3g} GB of disk, "
        f"{free / 1e9:.3g} GB free"
    )
    if needed > free:
        raise UserError(
            f"{path} has no room for {space}; keep fewer epochs (--keep, those that segments will "
            "touch), take --dtype bfloat16, train fewer --num-experts, or choose another --out"
        )
    return space
