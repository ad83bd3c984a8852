"""The outer gradient in JAX: all student steps and the way back through them as one XLA program.

The student's steps are a ``lax.scan`` whose body is checkpointed: as with ours, what is kept of a
step is the parameters that it began with. Everything is channels-last.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial

# read when JAX first touches the device: by default it would take most of the memory for itself
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import torch
import torch.nn.functional as F
from bench.problem import Problem
from bench.variants import OuterGradient
from jax import Array, lax
from torch import Tensor

from trajmatch.block import NORM_EPS
from trajmatch.networks.convnet import ConvNet
from trajmatch.networks.flat import split_flat
from trajmatch.networks.layers import growth

#: PyTorch's defaults on a GPU: convolutions in TF32, all other products in float32. Both hold for
#: the derivatives too, which take the precision over; neither does anything on a CPU.
CONVOLUTION = lax.Precision("tensorfloat32")
PRODUCT = lax.Precision("float32")

#: For each block convolution weight (HWIO) and bias, norm weight and bias; then the linear layer's
#: weight ``[features, K]`` and bias.
Parameters = list[Array]


def outer_gradient(problem: Problem) -> Callable[[], OuterGradient]:
    """Copy a problem to JAX.

    Args:
        problem: What to differentiate; its network has instance norm, ReLU and average pooling.

    Returns:
        Computes the gradients, to their end, on the problem's device; the first call compiles. The
        tensors that it gives are JAX's memory.

    Raises:
        RuntimeError: The problem is on a GPU, and JAX has none.
    """
    device = jax.devices("gpu" if problem.images.is_cuda else "cpu")[0]
    # Arguments of the compiled function, because it would take constants apart while it compiles.
    inputs = jax.device_put(
        (
            problem.images.permute(0, 2, 3, 1).cpu().numpy(),
            problem.lr.cpu().numpy(),
            parameters(problem.model, problem.start),
            parameters(problem.model, problem.target),
            probabilities(problem.labels, problem.size.num_classes).cpu().numpy(),
            problem.batches.int().cpu().numpy(),
        ),
        device,
    )

    def gradient() -> OuterGradient:
        loss, (images, lr) = jax.block_until_ready(_loss_and_gradients(*inputs))
        return OuterGradient(
            torch.from_dlpack(loss),
            torch.from_dlpack(images).permute(0, 3, 1, 2),
            torch.from_dlpack(lr),
        )

    return gradient


def parameters(model: ConvNet, theta: Tensor) -> Parameters:
    """The parameters ``theta [P]`` one by one, in the layouts that channels-last activations need.

    Features are flattened with the channels last here and first in PyTorch; the rows of the linear
    weight are reordered, so that no step has to.
    """
    *blocks, weight, bias = split_flat(model, theta.cpu()).values()
    # PyTorch's order is [K, C, H, W]
    weight = weight.unflatten(1, (model.width, -1)).transpose(1, 2).flatten(1).T
    blocks = [each.permute(2, 3, 1, 0) if each.dim() == 4 else each for each in blocks]
    return [each.contiguous().numpy() for each in (*blocks, weight, bias)]


def probabilities(labels: Tensor, num_classes: int) -> Tensor:
    """Target distributions ``[B, K]`` of classes ``[B]`` or of target logits ``[B, K]``."""
    if labels.is_floating_point():
        return labels.softmax(1)
    return F.one_hot(labels, num_classes).float()


@jax.jit
@partial(jax.value_and_grad, argnums=(0, 1))
def _loss_and_gradients(
    images: Array, lr: Array, start: Parameters, target: Parameters, labels: Array, batches: Array
) -> Array:
    """The matching loss; made into itself and its gradients in images and step size."""

    # a scan keeps its iterations apart by itself: a barrier would only prevent fusion
    @partial(jax.checkpoint, prevent_cse=False)
    def step(theta: Parameters, batch: Array) -> tuple[Parameters, None]:
        # a batch is a permutation: its adjoint is a scatter without atomic sums
        chosen = images.at[batch].get(unique_indices=True, mode="promise_in_bounds")
        gradients = jax.grad(_cross_entropy)(theta, chosen, labels[batch])
        return [value - lr * each for value, each in zip(theta, gradients, strict=True)], None

    end, _ = lax.scan(step, start, batches)
    return _squared_distance(end, target) / _squared_distance(start, target)


def _squared_distance(first: Parameters, second: Parameters) -> Array:
    return sum(jnp.square(a - b).sum() for a, b in zip(first, second, strict=True))


def _cross_entropy(theta: Parameters, images: Array, labels: Array) -> Array:
    return -(labels * jax.nn.log_softmax(_logits(theta, images))).sum(1).mean()


def _logits(theta: Parameters, images: Array) -> Array:
    *blocks, weight, bias = theta
    x, padding = images, 1 + growth(images.shape[1])
    for index in range(0, len(blocks), 4):
        x, padding = _block(x, blocks[index : index + 4], padding), 1
    return jnp.dot(x.reshape(len(x), -1), weight, precision=PRODUCT) + bias


def _block(x: Array, theta: Sequence[Array], padding: int) -> Array:
    """Convolution, instance norm, ReLU and average pooling of ``x [B, H, W, C]``."""
    weight, bias, norm_weight, norm_bias = theta
    x = lax.conv_general_dilated(
        x,
        weight,
        window_strides=(1, 1),
        padding=[(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=CONVOLUTION,
    )
    x = x + bias
    x = x - x.mean((1, 2), keepdims=True)
    x = x * lax.rsqrt(jnp.square(x).mean((1, 2), keepdims=True) + NORM_EPS)
    x = jax.nn.relu(x * norm_weight + norm_bias)
    count, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]  # an odd last row or column is in no window
    return x.reshape(count, height // 2, 2, width // 2, 2, channels).mean((2, 4))
