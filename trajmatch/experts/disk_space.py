"""Disk space of experts."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trajmatch import networks
from trajmatch.errors import UserError

_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class DiskSpace:
    """Disk space that experts need, and that there is.

    Attributes:
        experts: Experts to be written.
        snapshots: Snapshots of each.
        needed_bytes: Needed for all of them.
        free_bytes: Free in the folder of the store.
    """

    experts: int
    snapshots: int
    needed_bytes: int
    free_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.experts} experts of {self.snapshots} snapshots: "
            f"{self.needed_bytes / 1e9:.3g} GB of disk, {self.free_bytes / 1e9:.3g} GB free"
        )


def check_disk_space(path: Path, manifest: dict[str, Any], experts: int) -> DiskSpace:
    """Make sure that experts of a store will fit on the disk.

    Args:
        path: The folder of the store, which is there.
        manifest: Its description.
        experts: Number of experts that are still to be written.

    Raises:
        UserError: They will not.
    """
    model = networks.build(manifest["network"])
    numbers = networks.num_parameters(model) + networks.num_buffers(model)
    last = manifest.get("trained_epochs", manifest["snapshots"][-1])
    snapshots = sum(epoch <= last for epoch in manifest["snapshots"])
    each = snapshots * numbers * _BYTES[manifest["dtype"]]
    if last < manifest["snapshots"][-1]:  # parameters and memory of the optimiser, to go on from
        each += numbers * 4 * (3 if manifest["recipe"]["optimiser"] == "adam" else 2)
    space = DiskSpace(experts, snapshots, experts * each, shutil.disk_usage(path).free)
    if space.needed_bytes > space.free_bytes:
        raise UserError(
            f"{path} has no room for {space}; keep fewer epochs (--keep, those that segments will "
            "touch), take --dtype bfloat16, train fewer --num-experts, or choose another --out"
        )
    return space
