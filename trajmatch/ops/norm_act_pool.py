"""Norm, activation and pooling as one operator, closed under two differentiations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trajmatch import _extension  # noqa: F401  registers the operators
from trajmatch.block import ACTIVATIONS, GROUP_NORM_GROUPS, NORM_EPS, NORMS, POOLINGS
from trajmatch.ops._registration import forbid_autograd
from trajmatch.ops.errors import public_operator


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
    """What follows a convolution in the ConvNet of the papers, in one kernel for each pass.

    The passes are the forward pass, its backward, the tangent of the forward and the tangent of
    the backward; the last two are what a second differentiation calls. Work is done in
    channels-last; another memory format is converted first.

    Args:
        x: ``[B, C, H, W]``, float32 or float64.
        weight: Scale after normalisation, ``[C]``, or ``[C, H, W]`` for layer norm; None: 1.
        bias: Shift, likewise; None: 0.
        norm: ``"instance"`` (``GroupNorm(C, C)``), ``"group"`` (4 groups), ``"layer"`` (over
            ``(C, H, W)``) or ``"none"``.
        activation: ``"relu"``, ``"leaky_relu"`` (slope 0.01), ``"sigmoid"`` or ``"none"``.
        pooling: 2x2 ``"average"`` or ``"max"`` with stride 2 (a last odd row or column is
            dropped), or ``"none"``.
        eps: Added to the variance.

    Returns:
        ``[B, C, H // 2, W // 2]``, or ``[B, C, H, W]`` without pooling; channels-last.
        Differentiable twice in ``x``, ``weight`` and ``bias``.

    Raises:
        ValueError: A shape, device or choice does not fit.
        TypeError: A dtype is neither float32 nor float64, or they differ.
    """
    for name, value, choices in (
        ("norm", norm, NORMS),
        ("activation", activation, ACTIVATIONS),
        ("pooling", pooling, POOLINGS),
    ):
        if value not in choices:
            raise ValueError(
                f"trajmatch::norm_act_pool: expected {name} to be one of {', '.join(choices)}, "
                f"but got {value!r}"
            )
    if x.dim() != 4:
        raise ValueError(
            f"trajmatch::norm_act_pool: expected x to have 4 dimensions, but got {list(x.shape)}"
        )
    if norm == "none" and (weight is not None or bias is not None):
        raise ValueError(
            "trajmatch::norm_act_pool: expected weight and bias to be None for norm='none', "
            "but got a tensor"
        )
    groups = {"instance": x.shape[1], "group": GROUP_NORM_GROUPS, "layer": 1, "none": 0}[norm]
    return torch.ops.trajmatch.norm_act_pool(
        x,
        weight,
        bias,
        groups,
        norm == "layer",
        ACTIVATIONS.index(activation),
        POOLINGS.index(pooling),
        eps,
    )[0]


def _pooled(x: Tensor, pooling: int) -> Tensor:
    batch, channels, height, width = x.shape
    shrink = 1 if POOLINGS[pooling] == "none" else 2
    return torch.empty(
        (batch, channels, height // shrink, width // shrink),
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last,
    )


def _like(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _affine(x: Tensor, elementwise: bool) -> Tensor:
    return x.new_empty(x.shape[1:] if elementwise else x.shape[1:2])


@torch.library.register_fake("trajmatch::norm_act_pool")
def _(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    groups: int,
    elementwise: bool,
    activation: int,
    pooling: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    statistics = (x.shape[0], groups)
    return _pooled(x, pooling), x.new_empty(statistics), x.new_empty(statistics)


@torch.library.register_fake("trajmatch::norm_act_pool_backward")
def _(
    grad_out: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    groups: int,
    elementwise: bool,
    activation: int,
    pooling: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return _like(x), _affine(x, elementwise), _affine(x, elementwise)


@torch.library.register_fake("trajmatch::norm_act_pool_tangent")
def _(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    x_tangent: Tensor,
    weight_tangent: Tensor | None,
    bias_tangent: Tensor | None,
    groups: int,
    elementwise: bool,
    activation: int,
    pooling: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return _pooled(x, pooling), mean.new_empty(mean.shape), mean.new_empty(mean.shape)


@torch.library.register_fake("trajmatch::norm_act_pool_backward_tangent")
def _(
    grad_out: Tensor,
    grad_out_tangent: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    x_tangent: Tensor,
    weight_tangent: Tensor | None,
    bias_tangent: Tensor | None,
    mean_tangent: Tensor,
    projection: Tensor,
    groups: int,
    elementwise: bool,
    activation: int,
    pooling: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return _like(x), _affine(x, elementwise), _affine(x, elementwise)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, *ctx.choices = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x, weight, bias, mean, rstd)


def _backward(ctx: Any, grad_out: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, mean, rstd = ctx.saved_tensors
    grad_x, grad_weight, grad_bias = torch.ops.trajmatch.norm_act_pool_backward(
        grad_out, x, weight, bias, mean, rstd, *ctx.choices
    )
    return (
        grad_x,
        None if weight is None else grad_weight,
        None if bias is None else grad_bias,
        *(None for _ in ctx.choices),
    )


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, groups, elementwise, activation, pooling, eps = inputs
    ctx.choices = (groups, elementwise, activation, pooling, eps)
    ctx.save_for_backward(*tensors)


def _backward_backward(
    ctx: Any, v_x: Tensor, v_weight: Tensor, v_bias: Tensor
) -> tuple[Tensor | None, ...]:
    # The gradient of <grad_out, out> in (x, weight, bias) has a symmetric Jacobian, so its adjoint
    # is its tangent; and it is linear in grad_out, with the tangent of the forward as the factor.
    grad_out, x, weight, bias, mean, rstd = ctx.saved_tensors
    weight_tangent = None if weight is None else v_weight
    bias_tangent = None if bias is None else v_bias
    out_tangent, mean_tangent, projection = torch.ops.trajmatch.norm_act_pool_tangent(
        x, weight, bias, mean, rstd, v_x, weight_tangent, bias_tangent, *ctx.choices
    )
    grad_x, grad_weight, grad_bias = torch.ops.trajmatch.norm_act_pool_backward_tangent(
        grad_out,
        None,
        x,
        weight,
        bias,
        mean,
        rstd,
        v_x,
        weight_tangent,
        bias_tangent,
        mean_tangent,
        projection,
        *ctx.choices,
    )
    return (
        out_tangent,
        grad_x,
        None if weight is None else grad_weight,
        None if bias is None else grad_bias,
        None,
        None,
        *(None for _ in ctx.choices),
    )


torch.library.register_autograd("trajmatch::norm_act_pool", _backward, setup_context=_setup)
torch.library.register_autograd(
    "trajmatch::norm_act_pool_backward", _backward_backward, setup_context=_setup_backward
)
for _name in ("norm_act_pool_tangent", "norm_act_pool_backward_tangent"):
    forbid_autograd(_name, "trajmatch.reference.norm_act_pool has derivatives of any order")
