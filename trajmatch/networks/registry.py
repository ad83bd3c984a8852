"""Networks by name, as stores and artifacts record them."""

from __future__ import annotations

from typing import Any

from torch import nn

from trajmatch.networks.convnet import ConvNet

_NETWORKS: dict[str, type[nn.Module]] = {"ConvNet": ConvNet}


def build(spec: dict[str, Any]) -> nn.Module:
    """Build the network that a ``spec()`` describes, with PyTorch's default initialisation.

    Raises:
        ValueError: The name is unknown, or an argument is missing, unknown or out of range.
    """
    arguments = dict(spec)
    name = arguments.pop("name", None)
    if name not in _NETWORKS:
        raise ValueError(
            f"build: expected the network's name to be one of {', '.join(_NETWORKS)}, "
            f"but got {name!r}"
        )
    try:
        return _NETWORKS[name](**arguments)
    except TypeError as error:
        raise ValueError(f"build: expected the arguments of {name}, but got {arguments}") from error
