"""PyTorch's default initialisation, drawn from a generator of one's own."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def initialise(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """Draw every parameter anew as PyTorch's layers do by default, and return the model.

    Convolution and linear weights and biases are uniform in ``+-1/sqrt(fan_in)``; the weights of
    norms are 1 and their biases 0. Values are drawn on the CPU in the order of ``modules()``, so
    one seed gives the same network on every device.

    Raises:
        TypeError: The model has parameters in a layer whose default is not known here.
    """
    with torch.no_grad():
        for module in model.modules():
            own = list(module.parameters(recurse=False))
            if isinstance(module, nn.Conv2d | nn.Linear):
                bound = 1.0 / math.sqrt(module.weight[0].numel())
                for parameter in own:
                    parameter.copy_(_uniform(parameter, bound, generator))
            elif isinstance(module, nn.GroupNorm | nn.LayerNorm):
                if module.weight is not None:
                    module.weight.fill_(1.0)
                if module.bias is not None:
                    module.bias.fill_(0.0)
            elif own:
                raise TypeError(
                    "initialise: expected layers of type Conv2d, Linear, GroupNorm or LayerNorm, "
                    f"but got {type(module).__name__}"
                )
    return model


def _uniform(like: Tensor, bound: float, generator: torch.Generator) -> Tensor:
    values = torch.rand(like.shape, generator=generator, dtype=like.dtype)
    return values.mul_(2.0 * bound).sub_(bound)
