"""Arithmetic of an outer iteration, counted in forward passes."""

from __future__ import annotations

from itertools import pairwise

from bench.sizes import Size
from trajmatch.networks import ConvNet
from trajmatch.networks.convnet import feature_sizes

#: Forward passes' worth of work in a student step and its adjoint: 3 for the gradient (forward,
#: and backward in activations and weights), 6 for its tangent, in which each product has two terms.
PASSES = 9

_TAPS = 9  # of a 3x3 convolution


def forward_flops(model: ConvNet) -> int:
    """Floating-point operations of convolutions and linear layer for one image, 2 per product."""
    *sides, last = feature_sizes(model.image_size, model.depth, model.pooling)
    channels = [model.in_channels, *[model.width] * model.depth]
    products = sum(
        side**2 * _TAPS * before * after
        for side, (before, after) in zip(sides, pairwise(channels), strict=True)
    )
    return 2 * (products + model.width * last**2 * model.num_classes)


def outer_flops(size: Size) -> int:
    """Operations of an outer iteration by the direct method, ``9 F`` for each image and step.

    It is the same number for every variant, so that rates compare like times: one that recomputes
    activations does more, and one with Winograd's transforms multiplies less.
    """
    model = ConvNet(3, size.num_classes, size.image_size, width=size.width, depth=size.depth)
    return PASSES * forward_flops(model) * size.batch * size.steps
