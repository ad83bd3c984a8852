"""Choice of the device of a command, before any file is read."""

import os
import sys
from dataclasses import replace
from typing import Any, TypeVar

Config = TypeVar("Config", bound=Any)


def with_device(config: Config) -> Config:
    """Return the configuration with the device of this process in place of ``auto`` or ``cuda``.

    The choice for ``auto`` is printed. Raises UserError if the device is missing or unusable.
    """
    from trajmatch.device import automatic_device, usable_device
    from trajmatch.parallel import local_device

    if config.device != "auto":
        return replace(config, device=local_device(usable_device(config.device)))
    device, why = automatic_device()
    # The reason is empty if the user chose the device with TRAJMATCH_DEVICE.
    if why and not config.quiet and os.environ.get("RANK", "0") == "0":
        print(f"trajmatch: --device auto takes {device} ({why})", file=sys.stderr)
    return replace(config, device=local_device(device))
