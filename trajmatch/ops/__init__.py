"""Differentiable operators of trajectory matching.

What takes tensors is a registered PyTorch operator (``torch.ops.trajmatch``): it runs on the CPU
and, where built, on CUDA, in float32 and float64, under ``torch.compile`` and with fake tensors.
What takes a model lowers to such operators for the papers' sequential networks and runs eagerly on
PyTorch's autograd for every other module; :func:`engine_for` says which.
:mod:`trajmatch.reference` has the same functions in plain PyTorch.
"""

from trajmatch import _extension  # noqa: F401  registers the operators
from trajmatch.ops import dsa_parameters
from trajmatch.ops.arguments import DsaReplay
from trajmatch.ops.dsa import dsa
from trajmatch.ops.norm_act_pool import norm_act_pool
from trajmatch.ops.param_distance import param_distance
from trajmatch.ops.sgd_step import sgd_step, sgd_step_adjoint
from trajmatch.ops.sharding import Shards
from trajmatch.ops.soft_cross_entropy import soft_cross_entropy
from trajmatch.ops.student import (
    engine_for,
    gradient,
    gradient_jvp,
    image_gradient,
    release_workspace,
)
from trajmatch.ops.unroll import tape_bytes, unroll
from trajmatch.reference import GradientJvp

__all__ = [
    "DsaReplay",
    "GradientJvp",
    "Shards",
    "dsa",
    "dsa_parameters",
    "engine_for",
    "gradient",
    "gradient_jvp",
    "image_gradient",
    "norm_act_pool",
    "param_distance",
    "release_workspace",
    "sgd_step",
    "sgd_step_adjoint",
    "soft_cross_entropy",
    "tape_bytes",
    "unroll",
]
