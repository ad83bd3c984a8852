"""The disk that experts take."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trajmatch import networks
from trajmatch.errors import UserError

_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Space:
    """What experts will take, and what there is.

    Attributes:
        experts: Experts to be written.
        snapshots: Snapshots of each.
        needed_bytes: Disk for all of them.
        free_bytes: Disk that is free where they go.
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


def space_for(path: Path, manifest: dict[str, Any], experts: int) -> Space:
    """The disk that so many experts of a store will take.

    Args:
        path: The folder of the store, which is there.
        manifest: Its description.
        experts: How many are still to be written.

    Returns:
        What they take, and what is free.
    """
    model = networks.build(manifest["network"])
    numbers = networks.num_parameters(model) + networks.num_buffers(model)
    snapshots = len(manifest["snapshots"])
    return Space(
        experts=experts,
        snapshots=snapshots,
        needed_bytes=experts * snapshots * numbers * _BYTES[manifest["dtype"]],
        free_bytes=shutil.disk_usage(path).free,
    )


def check_space(path: Path, space: Space) -> None:
    """Makes sure that the experts will fit on the disk.

    Raises:
        UserError: They will not.
    """
    if space.needed_bytes > space.free_bytes:
        raise UserError(
            f"{path} has no room for {space}; keep fewer epochs (--keep, those that segments will "
            "touch), take --dtype bfloat16, train fewer --num-experts, or choose another --out"
        )
