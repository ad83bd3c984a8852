"""Choices and constants of a block: the layers after a convolution in the papers' networks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias


class Norm(NamedTuple):
    """Numeric description of a norm.

    Attributes:
        groups: Number of channel groups that are normalised together; None: one per channel; 0: no
            norm.
        elementwise: True for weight and bias per value of an image, False per channel.
        over_batch: True if mean and variance are over all images of a batch.
    """

    groups: int | None
    elementwise: bool = False
    over_batch: bool = False


#: Norms by name.
NORMS = {
    "none": Norm(0),
    "instance": Norm(None),
    "group": Norm(4),  # as in MTT's networks.py
    "layer": Norm(1, elementwise=True),
    "batch": Norm(None, over_batch=True),
}
#: Norms that treat each image alone.
IMAGE_NORMS = tuple(name for name, norm in NORMS.items() if not norm.over_batch)
if TYPE_CHECKING:
    NormName: TypeAlias = str
else:
    NormName = Literal[tuple(NORMS)]

#: Both in the order of the engine's numbers (``csrc/core/norm_act_pool.h``).
ACTIVATIONS = ("none", "relu", "leaky_relu", "sigmoid")
POOLINGS = ("none", "average", "max")

#: Blocks that run in fused CUDA kernels, and in what precision, in the order of ``FusedKernels``
#: (``csrc/core/network.h``).
CudaBlocks = Literal["library", "first", "tf32", "fp16"]

#: Added to the variance, PyTorch's default for every norm used here.
NORM_EPS = 1e-5
#: Slope of the leaky ReLU for negative inputs, PyTorch's default.
LEAKY_SLOPE = 0.01
