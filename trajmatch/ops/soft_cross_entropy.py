"""Cross-entropy with class indices or logits as labels."""

from typing import Any

import torch
from torch import Tensor

from trajmatch.ops.errors import public_operator
from trajmatch.ops.registration import by_reference, operators, register


@public_operator
def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy of a batch; soft labels are logits, as in DATM (section 3.3).

    Args:
        logits: ``[B, K]``, float32 or float64.
        targets: Class indices ``[B]``, int64; or logits ``[B, K]`` of the target distribution,
            dtype of ``logits``.

    Returns:
        The loss. ``[]``, dtype of ``logits``. Differentiable twice in ``logits`` and target logits.

    Raises:
        ValueError: Shapes or devices differ, the batch is empty, or (on the CPU) a class index is
            outside ``[0, K)``; on CUDA such an index gives NaN.
        TypeError: A dtype is not supported.
    """
    return operators.soft_cross_entropy(logits, targets)


def _gradients(given: Any) -> tuple[Tensor, Tensor]:
    soft = given.targets.is_floating_point()
    targets = given.logits.new_empty(given.logits.shape if soft else (0,))
    return given.logits.new_empty(given.logits.shape), targets


def _backward(saved: Any, grad_loss: Tensor) -> tuple[Tensor, Tensor]:
    return operators.soft_cross_entropy_backward(grad_loss, saved.logits, saved.targets)


def _backward_backward(saved: Any, v_logits: Tensor, v_targets: Tensor) -> tuple[Tensor, ...]:
    # The Hessian is symmetric, so the vector-Jacobian product of the gradient is the derivative of
    # the gradient along (v_logits, v_targets). It is computed for grad_loss = 1, so that
    # `directional` is the gradient of grad_loss.
    grad_loss, soft = saved.grad_loss, saved.targets.is_floating_point()
    at = (torch.ones_like(grad_loss), saved.logits, saved.targets)
    tangents = (v_logits, v_targets if soft else None)
    directional, *parts = operators.soft_cross_entropy_backward_tangent(*at, *tangents)
    return directional, *(grad_loss * part for part in parts)


register(
    "soft_cross_entropy", lambda given: given.logits.new_empty(()), _backward, save="logits targets"
)
register(
    "soft_cross_entropy_backward", _gradients, _backward_backward, save="grad_loss logits targets"
)
register(
    "soft_cross_entropy_backward_tangent",
    lambda given: (given.logits.new_empty(()), *_gradients(given)),
    instead=by_reference("soft_cross_entropy"),
)
