"""Differentiable operators of trajectory matching.

Functions that take only tensors are PyTorch operators, registered in ``torch.ops.trajmatch``. They
take float32 and float64 tensors on the CPU and, in a build with CUDA kernels, on the GPU. They work
with ``torch.compile`` and fake tensors. Functions that take a model run on such operators or on
autograd; see :func:`engine_for`. :mod:`trajmatch.reference` has the functions in plain PyTorch.
"""

from trajmatch import _extension  # noqa: F401  registers the operators
from trajmatch.networks.engine import cuda_blocks as cuda_blocks
from trajmatch.ops import dsa_parameters as dsa_parameters
from trajmatch.ops.arguments import DsaReplay as DsaReplay
from trajmatch.ops.dsa import dsa as dsa
from trajmatch.ops.norm_act_pool import norm_act_pool as norm_act_pool
from trajmatch.ops.optimisers import SGD as SGD
from trajmatch.ops.optimisers import Adam as Adam
from trajmatch.ops.param_distance import param_distance as param_distance
from trajmatch.ops.parts import Shards as Shards
from trajmatch.ops.sgd_step import sgd_step as sgd_step
from trajmatch.ops.sgd_step import sgd_step_adjoint as sgd_step_adjoint
from trajmatch.ops.soft_cross_entropy import soft_cross_entropy as soft_cross_entropy
from trajmatch.ops.student import engine_for as engine_for
from trajmatch.ops.student import gradient as gradient
from trajmatch.ops.student import gradient_jvp as gradient_jvp
from trajmatch.ops.student import image_gradient as image_gradient
from trajmatch.ops.student import release_workspace as release_workspace
from trajmatch.ops.unroll import tape_bytes as tape_bytes
from trajmatch.ops.unroll import unroll as unroll
from trajmatch.ops.unroll import unroll_together as unroll_together
from trajmatch.reference import GradientJvp as GradientJvp
from trajmatch.reference import OptimiserState as OptimiserState
