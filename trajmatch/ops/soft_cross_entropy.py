"""Cross-entropy with class indices or with logits as labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trajmatch import _extension  # noqa: F401  registers the operators
from trajmatch.ops._registration import forbid_autograd
from trajmatch.ops.errors import public_operator


@public_operator
def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of a batch; soft labels are logits, as DATM stores them (section 3.3).

    Args:
        logits: ``[B, K]``, float32 or float64.
        targets: Class indices ``[B]``, int64, or target logits ``[B, K]``, dtype of ``logits``;
            the softmax of the latter is taken inside.

    Returns:
        The loss. ``[]``, dtype of ``logits``. Differentiable twice in ``logits`` and in target
        logits.

    Raises:
        ValueError: Shapes or devices differ, the batch is empty, or (on the CPU) a class index is
            outside ``[0, K)``; on CUDA such an index gives NaN.
        TypeError: A dtype is not supported.
    """
    return torch.ops.trajmatch.soft_cross_entropy(logits, targets)


def _like_targets(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.new_empty(logits.shape if targets.is_floating_point() else (0,))


@torch.library.register_fake("trajmatch::soft_cross_entropy")
def _(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.new_empty(())


@torch.library.register_fake("trajmatch::soft_cross_entropy_backward")
def _(grad_loss: Tensor, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return logits.new_empty(logits.shape), _like_targets(logits, targets)


@torch.library.register_fake("trajmatch::soft_cross_entropy_backward_tangent")
def _(
    grad_loss: Tensor,
    logits: Tensor,
    targets: Tensor,
    logits_tangent: Tensor | None,
    targets_tangent: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    return logits.new_empty(()), logits.new_empty(logits.shape), _like_targets(logits, targets)


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, Tensor | None]:
    logits, targets = ctx.saved_tensors
    grad_logits, grad_targets = torch.ops.trajmatch.soft_cross_entropy_backward(
        grad_loss, logits, targets
    )
    return grad_logits, grad_targets if targets.is_floating_point() else None


def _setup_backward(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)


def _backward_backward(
    ctx: Any, v_logits: Tensor, v_targets: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    # Hessians are symmetric: the adjoint of the gradient is its tangent.
    grad_loss, logits, targets = ctx.saved_tensors
    soft = targets.is_floating_point()
    directional, logits_part, targets_part = (
        torch.ops.trajmatch.soft_cross_entropy_backward_tangent(
            torch.ones_like(grad_loss), logits, targets, v_logits, v_targets if soft else None
        )
    )
    return directional, grad_loss * logits_part, grad_loss * targets_part if soft else None


torch.library.register_autograd("trajmatch::soft_cross_entropy", _backward, setup_context=_setup)
torch.library.register_autograd(
    "trajmatch::soft_cross_entropy_backward", _backward_backward, setup_context=_setup_backward
)
forbid_autograd(
    "soft_cross_entropy_backward_tangent",
    "trajmatch.reference.soft_cross_entropy has derivatives of any order",
)
