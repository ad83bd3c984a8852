"""PyTorch's default initialisation, with an explicit random generator."""

import copy
import math

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from trajmatch.networks.external import External


def initialise(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """Draw the parameters of a model as PyTorch's layers do by default; return the model.

    Convolution and linear weights and biases are uniform in ``+-1/sqrt(fan_in)``. Norms get weights
    1, biases 0 and new running statistics. Other layers call ``reset_parameters()`` (TypeError is
    raised if they have no such method), and an :class:`trajmatch.networks.External` calls its
    constructor. Both draw from PyTorch's CPU generator, seeded from ``generator``. Except in an
    External, frozen parameters keep their values. Values are drawn on the CPU, so a seed gives the
    same network on every device.
    """
    kept = {} if isinstance(model, External) else dict(model.named_parameters())
    frozen = {name: each.clone() for name, each in kept.items() if not each.requires_grad}
    # Frozen parameters are drawn with their layers, and then get their values back.
    with torch.no_grad():
        _initialise(model, generator)
        for name, value in frozen.items():
            kept[name].copy_(value)
    return model


def _initialise(module: nn.Module, generator: torch.Generator) -> None:
    # The constructor of an External draws all submodules.
    if isinstance(module, External):
        _reset(module, generator)
        return
    own = list(module.parameters(recurse=False))
    if isinstance(module, nn.Conv2d | nn.Linear):
        # PyTorch's default, kaiming_uniform_(a=sqrt(5)), is this uniform distribution.
        bound = 1.0 / math.sqrt(module.weight[0].numel())
        for parameter in own:
            values = torch.rand(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.copy_(values.mul_(2.0 * bound).sub_(bound))
    elif isinstance(module, nn.GroupNorm | nn.LayerNorm | _NormBase):
        module.reset_parameters()  # draws nothing
    elif any(parameter.requires_grad for parameter in own):
        if not hasattr(module, "reset_parameters"):
            raise TypeError(
                "initialise: expected layers of type Conv2d, Linear, a norm, or with a method "
                f"reset_parameters(), but got {type(module).__name__}"
            )
        _reset(module, generator)
    for child in module.children():
        _initialise(child, generator)


def _reset(module: nn.Module, generator: torch.Generator) -> None:
    """Call ``reset_parameters()`` with a seed drawn from ``generator``."""
    # A copy on the CPU, so that the values do not depend on the device.
    twin = copy.deepcopy(module).cpu()
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        twin.reset_parameters()  # type: ignore[operator]
    module.load_state_dict(twin.state_dict())
