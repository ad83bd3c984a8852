"""Student and expert networks, and their parameters as one flat vector."""

from trajmatch.networks.convnet import ConvNet
from trajmatch.networks.flat import (
    call_flat,
    flat_parameters,
    load_flat_parameters,
    num_parameters,
)
from trajmatch.networks.initialise import initialise
from trajmatch.networks.registry import build

__all__ = [
    "ConvNet",
    "build",
    "call_flat",
    "flat_parameters",
    "initialise",
    "load_flat_parameters",
    "num_parameters",
]
