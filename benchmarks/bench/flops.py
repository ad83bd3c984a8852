"""Arithmetic of an outer iteration, counted in forward passes."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.sizes import Size
from trajmatch.networks import ConvNet

#: Forward passes' worth of work in a student step and its adjoint: 3 for the gradient (forward,
#: and backward in activations and weights), 6 for its tangent, in which each product has two terms.
PASSES = 9


def forward_flops(model: ConvNet) -> int:
    """Floating-point operations of convolutions and linear layer for one image, 2 per product."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *model.image_shape))
    flops: int = counter.get_total_flops()
    return flops


def outer_flops(size: Size) -> int:
    """Operations of an outer iteration by the direct method, ``9 F`` for each image and step.

    It is the same number for every variant, so that rates compare like times: one that recomputes
    activations does more, and one with Winograd's transforms multiplies less.
    """
    model = ConvNet(3, size.num_classes, size.image_size, width=size.width, depth=size.depth)
    return PASSES * forward_flops(model) * size.batch * size.steps
