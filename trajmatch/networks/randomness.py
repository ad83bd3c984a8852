"""Networks that draw random numbers, which an adjoint would have to draw again, are refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd


@contextmanager
def refuse_randomness(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Raise ValueError when the model draws from PyTorch's generator inside of the context.

    Args:
        model: What is called there.
        device: Where it runs.

    Raises:
        ValueError: The state of the generator of the CPU or of the device is another one after it.
    """
    before = _states(device)
    yield
    if not all(map(torch.equal, before, _states(device))):
        raise ValueError(
            f"expected a network without randomness, but {type(model).__name__} draws random "
            f"numbers{_where(model)}: its steps could not be repeated exactly; set the probability "
            "of its dropout to 0, or put it into evaluation mode"
        )


def _states(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def _where(model: nn.Module) -> str:
    for name, module in model.named_modules():
        if module.training and isinstance(module, _DropoutNd | nn.RReLU):
            return f" (in {name or 'itself'}, a {type(module).__name__})"
    return ""
