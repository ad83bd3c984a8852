"""The device that a user names."""

from __future__ import annotations

import torch

from trajmatch.errors import UserError


def check_device(name: str) -> None:
    """Makes sure that tensors can be made on a device.

    Args:
        name: What ``--device`` was given.

    Raises:
        UserError: There is no such device here.
    """
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"--device should be cpu or a CUDA device of this machine, but is {name} ({reason})"
        ) from error
