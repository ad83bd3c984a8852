"""Choices and constants of a block: what follows a convolution in the networks of the papers."""

#: In the order of the engine's numbers (``csrc/core/norm_act_pool.h``). Networks with batch norm,
#: which joins the images of a batch, run on autograd.
NORMS = ("none", "instance", "group", "layer")
ACTIVATIONS = ("none", "relu", "leaky_relu", "sigmoid")
POOLINGS = ("none", "average", "max")

#: Blocks with CUDA kernels of their own (``csrc/core/network.h``), in the order of its numbers.
FUSED_KERNELS = ("library", "first", "float32", "tf32", "fp16")

#: Groups of ``norm="group"`` (``GroupNorm(4, C)`` in MTT's ``networks.py``).
GROUP_NORM_GROUPS = 4
#: Added to the variance, PyTorch's default for every norm used here.
NORM_EPS = 1e-5
#: Slope of the leaky ReLU for negative inputs, PyTorch's default.
LEAKY_SLOPE = 0.01
