"""A module's running statistics as one flat vector, in the order of ``module.named_buffers()``.

Parameters decide how a network trains; in evaluation mode batch norm also needs the mean and
variance that it has met, which PyTorch keeps in buffers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trajmatch.networks.flat import copy_flat


def num_buffers(model: nn.Module) -> int:
    """Number of values ``Q`` in the buffers that a state dict holds."""
    return sum(buffer.numel() for buffer in _kept(model).values())


def flat_buffers(model: nn.Module) -> Tensor:
    """A copy of the buffers as one vector ``[Q]``, float32, on their device; empty without any.

    Counts, such as that of the batches seen, are exact up to ``2**24``.
    """
    kept = [buffer.detach().reshape(-1).to(torch.float32) for buffer in _kept(model).values()]
    return torch.cat(kept) if kept else torch.empty(0)


def load_flat_buffers(model: nn.Module, flat: Tensor) -> None:
    """Copy a flat vector ``[Q]`` into the model's buffers.

    Raises:
        ValueError: ``flat`` is not ``[Q]`` of this model.
    """
    copy_flat(flat, _kept(model), f"the buffers of {type(model).__name__}")


def _kept(model: nn.Module) -> dict[str, Tensor]:
    """The persistent buffers: the others (masks, tables) are made by the constructor."""
    state = model.state_dict(keep_vars=True)
    return {name: buffer for name, buffer in model.named_buffers() if name in state}
