"""The device of a command, chosen and said before anything is read."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import Any, TypeVar

Config = TypeVar("Config", bound=Any)


def with_device(config: Config) -> Config:
    """Replace ``auto`` by the device to compute on, which is printed, and ``cuda`` by a rank's GPU.

    Args:
        config: A configuration with ``device`` and ``quiet``.

    Returns:
        The same with a device that can be used.

    Raises:
        UserError: The device is not there or cannot be used.
    """
    from trajmatch.device import automatic_device, usable_device
    from trajmatch.parallel import local_device

    if config.device != "auto":
        return replace(config, device=local_device(usable_device(config.device)))
    device, why = automatic_device()
    if why and not config.quiet and os.environ.get("RANK", "0") == "0":
        print(f"trajmatch: --device auto takes {device} ({why})", file=sys.stderr)
    return replace(config, device=local_device(device))
