"""AST's perturbation of the weights that a student starts from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trajmatch.networks.flat import split_flat


def perturbed(model: nn.Module, theta: Tensor, strength: float, draw: torch.Generator) -> Tensor:
    """Parameters with every convolution's weight ``W`` moved to ``W + a D * W``.

    ``D`` is standard normal, divided by its Frobenius norm, and the product is element by element,
    so that the relative change of a weight is ``a / sqrt(numel)`` in root mean square. Only
    four-dimensional parameters change (AST, weight perturbation; as in the authors' code, which has
    ``a = 1``), and none that is frozen.

    Args:
        model: The network of these parameters.
        theta: The parameters. ``[P]``.
        strength: ``a``.
        draw: Where ``D`` is drawn from, on the CPU, in the order of the parameters.

    Returns:
        The perturbed parameters. ``[P]``; ``theta`` itself is left as it is.
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
