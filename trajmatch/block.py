"""Norms, activations and poolings (the layers of a block after its convolution), and constants."""

from typing import Literal, NamedTuple


class Norm(NamedTuple):
    """Numeric description of a norm."""

    # Number of channel groups with a common mean and variance; None: one per channel; 0: no norm.
    groups: int | None
    elementwise: bool = False  # weight and bias are per value of an image, instead of per channel
    over_batch: bool = False  # mean and variance are over all images of a batch


#: Norms by name.
NORMS = {
    "none": Norm(0),
    "instance": Norm(None),
    "group": Norm(4),  # as in MTT's networks.py
    "layer": Norm(1, elementwise=True),
    "batch": Norm(None, over_batch=True),
}
#: Norms that normalise each image alone.
IMAGE_NORMS = tuple(name for name, norm in NORMS.items() if not norm.over_batch)

#: Activations and poolings, in the order of the engine's numbers (``csrc/core/activation.h`` and
#: ``csrc/core/norm_act_pool.h``).
ACTIVATIONS = ("none", "relu", "leaky_relu", "sigmoid")
POOLINGS = ("none", "average", "max")

#: Names for the blocks that run as fused CUDA kernels and for their precision. The order is that of
#: ``FusedKernels`` (``csrc/core/network.h``), where ``library`` is ``kNone``.
CudaBlocks = Literal["library", "first", "tf32", "fp16", "auto"]

#: Added to the variance, PyTorch's default for every norm used here.
NORM_EPS = 1e-5
#: Slope of the leaky ReLU for negative inputs, PyTorch's default.
LEAKY_SLOPE = 0.01
