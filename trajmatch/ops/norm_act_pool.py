"""Norm, activation and pooling as one operator that is differentiable twice."""

from typing import Any

import torch
from torch import Tensor

from trajmatch.block import ACTIVATIONS, IMAGE_NORMS, NORM_EPS, NORMS, POOLINGS
from trajmatch.ops.arguments import Expect
from trajmatch.ops.errors import public_operator
from trajmatch.ops.registration import by_reference, operators, register


@public_operator
def norm_act_pool(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    norm: str = "instance",
    activation: str = "relu",
    pooling: str = "average",
    eps: float = NORM_EPS,
) -> Tensor:
    """Apply the norm, activation and pooling of the papers' ConvNet as one operator.

    The forward pass, the backward pass and their tangents, which second derivatives use, are fused
    kernels. They work in channels-last; other layouts are converted.

    Args:
        x: ``[B, C, H, W]``, float32 or float64.
        weight: Scale after normalisation, ``[C]``, or ``[C, H, W]`` for layer norm; None: 1.
        bias: Shift, in the shape of ``weight``; None: 0.
        norm: ``"instance"`` (``GroupNorm(C, C)``), ``"group"`` (4 groups), ``"layer"`` (over
            ``(C, H, W)``) or ``"none"``.
        activation: ``"relu"``, ``"leaky_relu"`` (slope 0.01), ``"sigmoid"`` or ``"none"``.
        pooling: 2x2 ``"average"`` or ``"max"`` with stride 2, or ``"none"``. At an odd height or
            width, pooling drops the last row or column.
        eps: Added to the variance.

    Returns:
        ``[B, C, H // 2, W // 2]``, or ``[B, C, H, W]`` without pooling; channels-last.
        Differentiable twice in ``x``, ``weight`` and ``bias``.

    Raises:
        ValueError: A shape, device or choice does not fit.
        TypeError: A dtype is neither float32 nor float64, or dtypes differ.
    """
    expect = Expect("norm_act_pool")
    expect.choice("norm", norm, IMAGE_NORMS)
    expect.choice("activation", activation, ACTIVATIONS)
    expect.choice("pooling", pooling, POOLINGS)
    expect.that(x.dim() == 4, "x", "have 4 dimensions", list(x.shape))
    affine = weight is not None or bias is not None
    expect.that(
        not (affine and norm == "none"), "weight and bias", "be None for norm='none'", "a tensor"
    )
    # `groups` is None for one group per channel, and 0 for no norm.
    groups, elementwise, _ = NORMS[norm]
    groups = x.shape[1] if groups is None else groups
    choices = (elementwise, ACTIVATIONS.index(activation), POOLINGS.index(pooling), eps)
    return operators.norm_act_pool(x, weight, bias, groups, *choices)[0]


def _fake(given: Any) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels, height, width = given.x.shape
    shrink = 1 if POOLINGS[given.pooling] == "none" else 2
    pooled = given.x.new_empty((batch, channels, height // shrink, width // shrink))
    statistics = (given.x.new_empty((batch, given.groups)) for _ in range(2))
    return torch.empty_like(pooled, memory_format=torch.channels_last), *statistics


def _backward(saved: Any, grad_out: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
    return operators.norm_act_pool_backward(
        grad_out, saved.x, saved.weight, saved.bias, saved.mean, saved.rstd, *saved.choices
    )


def _fake_backward(given: Any) -> tuple[Tensor, Tensor, Tensor]:
    affine = given.x.shape[1:] if given.elementwise else given.x.shape[1:2]
    grad_x = torch.empty_like(given.x, memory_format=torch.channels_last)
    return grad_x, given.x.new_empty(affine), given.x.new_empty(affine)


def _backward_backward(
    saved: Any, v_x: Tensor, v_weight: Tensor, v_bias: Tensor
) -> tuple[Tensor, ...]:
    # This is the adjoint of the backward pass. The gradient of <grad_out, out> in (x, weight, bias)
    # has a symmetric Jacobian, so its adjoint is the tangent of the backward pass. The gradient is
    # also linear in grad_out, and its adjoint in grad_out is the tangent of the forward pass.
    at = (saved.x, saved.weight, saved.bias, saved.mean, saved.rstd)
    tangents = (
        v_x,
        None if saved.weight is None else v_weight,
        None if saved.bias is None else v_bias,
    )
    out_tangent, *statistics = operators.norm_act_pool_tangent(*at, *tangents, *saved.choices)
    return out_tangent, *operators.norm_act_pool_backward_tangent(
        saved.grad_out, None, *at, *tangents, *statistics, *saved.choices
    )


_SAVED = "x weight bias mean rstd"
_INSTEAD = by_reference("norm_act_pool")

register(
    "norm_act_pool", _fake, _backward, save=_SAVED, outputs="out mean rstd", constant="mean rstd"
)
register("norm_act_pool_backward", _fake_backward, _backward_backward, save=f"grad_out {_SAVED}")
register("norm_act_pool_tangent", _fake, instead=_INSTEAD)
register("norm_act_pool_backward_tangent", _fake_backward, instead=_INSTEAD)
