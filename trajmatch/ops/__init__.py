"""Differentiable operators of trajectory matching.

What takes tensors is a registered PyTorch operator (``torch.ops.trajmatch``): it runs on the CPU
and, where built, on CUDA, in float32 and float64, under ``torch.compile`` and with fake tensors.
What takes a model lowers to such operators for the papers' sequential networks and runs eagerly on
PyTorch's autograd for every other module; :func:`engine_for` says which.
:mod:`trajmatch.reference` has the same functions in plain PyTorch.
"""

from trajmatch import _extension  # noqa: F401  registers the operators
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
from trajmatch.reference import GradientJvp as GradientJvp
from trajmatch.reference import OptimiserState as OptimiserState
