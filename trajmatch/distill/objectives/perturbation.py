"""Perturbation of the weights that a student starts from (AST)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trajmatch.networks.flat import split_flat


def perturbed(model: nn.Module, theta: Tensor, strength: float, draw: torch.Generator) -> Tensor:
    """Return a copy of ``theta [P]`` with each convolution weight ``W`` moved to ``W + a D * W``.

    ``D`` is standard normal, divided by its Frobenius norm, so the relative change of a weight is
    ``a / sqrt(numel)`` (root mean square). As in the authors' code (there ``a = 1``), only 4-D
    parameters change, and no frozen one. ``draw`` is a CPU generator.
    """
    moved = theta.clone()
    for parameter, weight in zip(
        model.parameters(), split_flat(model, moved).values(), strict=True
    ):
        if weight.dim() == 4 and parameter.requires_grad:
            noise = torch.randn(weight.shape, generator=draw, dtype=torch.float32)
            noise = (noise / noise.norm()).to(weight)
            weight += strength * noise * weight
    return moved
