"""AST's smooth experts: the penalty on gradients of the logits in the images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from trajmatch import ops


@dataclass(frozen=True)
class GradientPenalty:
    """``weight * mean (|G| - 1)^2`` with ``G = d(sum of all logits)/dx`` (AST, gradient penalty).

    ``x`` is the batch without augmentation. The norm is over the channels of each pixel, as in the
    authors' code, or over each image, as elsewhere in the literature.

    Attributes:
        weight: ``lambda``.
        norm: ``"pixel"`` or ``"image"``.
    """

    weight: float
    norm: Literal["pixel", "image"] = "pixel"

    def gradient(self, model: nn.Module, theta: Tensor, images: Tensor) -> Tensor:
        """The penalty's gradient in the parameters.

        The derivative of ``sum P G`` in the parameters, for the ``P = d penalty / d G`` at hand, is
        the derivative of the logits' gradient along ``P`` in the images: one ``gradient_jvp``.

        Args:
            model: The network.
            theta: Its parameters. ``[P]``.
            images: ``[B, C, H, W]``, as the network sees them.

        Returns:
            ``[P]``.
        """
        slope = ops.image_gradient(model, theta, images, None, loss="sum_logits")
        pull = self._pull(slope)
        jvp = ops.gradient_jvp(model, theta, images, None, image_tangent=pull, loss="sum_logits")
        return jvp.grad_theta

    def _pull(self, slope: Tensor) -> Tensor:
        """The derivative of the penalty in the input gradient, both ``[B, C, H, W]``."""
        over = 1 if self.norm == "pixel" else (1, 2, 3)
        norms = torch.linalg.vector_norm(slope, dim=over, keepdim=True)
        # Where the gradient is 0 its norm has no direction, and pulls in none.
        unit = torch.where(norms > 0, slope / norms, torch.zeros_like(slope))
        return 2 * self.weight / norms.numel() * (norms - 1) * unit
