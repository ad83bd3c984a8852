"""Choices and constants of a block: what follows a convolution in the networks of the papers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias


class Norm(NamedTuple):
    """A norm, by numbers.

    Attributes:
        groups: Groups of channels with one mean and variance each, of an image; None: every channel
            is a group; 0: no norm.
        elementwise: True for a weight and a bias for each value of an image, not for each channel.
        over_batch: True for one mean and variance for all images of a batch.
    """

    groups: int | None
    elementwise: bool = False
    over_batch: bool = False


#: Norms by name. Another one is another line here.
NORMS = {
    "none": Norm(0),
    "instance": Norm(None),
    "group": Norm(4),  # as in MTT's networks.py
    "layer": Norm(1, elementwise=True),
    "batch": Norm(None, over_batch=True),
}
#: Those that look at each image alone.
IMAGE_NORMS = tuple(name for name, norm in NORMS.items() if not norm.over_batch)
if TYPE_CHECKING:
    NormName: TypeAlias = str
else:
    NormName = Literal[tuple(NORMS)]

#: In the order of the engine's numbers (``csrc/core/norm_act_pool.h``).
ACTIVATIONS = ("none", "relu", "leaky_relu", "sigmoid")
POOLINGS = ("none", "average", "max")

#: Blocks with CUDA kernels of their own (``csrc/core/network.h``), in the order of its numbers.
FUSED_KERNELS = ("library", "first", "float32", "tf32", "fp16")

#: Added to the variance, PyTorch's default for every norm used here.
NORM_EPS = 1e-5
#: Slope of the leaky ReLU for negative inputs, PyTorch's default.
LEAKY_SLOPE = 0.01
