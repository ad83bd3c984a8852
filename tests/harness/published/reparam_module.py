"""Calls of a module with a flat vector of parameters."""

from torch import nn
from torch.func import functional_call

from trajmatch.networks.flat import split_flat


class ReparamModule(nn.Module):
    """A module whose parameters are given in each call."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x, flat_param):
        """Return the logits."""
        return functional_call(self.module, split_flat(self.module, flat_param), (x,))
