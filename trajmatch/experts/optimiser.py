"""Optimisers of the experts, in place on flat vectors; their state is a dictionary of tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trajmatch import ops
from trajmatch.networks.flat import decayed

Memory = dict[str, Tensor]


@dataclass(frozen=True)
class Sgd:
    """SGD with momentum ``mu``: ``b <- mu b + g + wd theta``, ``theta <- theta - lr b``."""

    momentum: float = 0.0
    weight_decay: float = 0.0
    trainable: Tensor | None = None  # mask [P] of the parameters that decay; None: all

    def memory(self, theta: Tensor) -> Memory:
        """Return the initial momentum buffer ``b``: zeros, so that the first step is plain SGD."""
        return {"momentum": torch.zeros_like(theta)}

    def __call__(self, theta: Tensor, grad: Tensor, lr: Tensor, memory: Memory) -> None:
        """Update ``theta [P]`` and ``memory`` with gradient ``[P]`` and learning rate ``[]``."""
        if self.weight_decay:
            grad = decayed(grad, theta, self.weight_decay, self.trainable)
        stepped, buffer = ops.sgd_step(theta, grad, lr, memory["momentum"], self.momentum)
        theta.copy_(stepped)
        memory["momentum"].copy_(buffer)


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma and Ba, 2015), as ``torch.optim.Adam``: weight decay adds to the gradient."""

    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    trainable: Tensor | None = None  # as for Sgd

    def memory(self, theta: Tensor) -> Memory:
        """Return the initial means of the gradient and its square, and the step count."""
        zeros = torch.zeros_like
        return {"momentum": zeros(theta), "squares": zeros(theta), "taken": theta.new_zeros(())}

    def __call__(self, theta: Tensor, grad: Tensor, lr: Tensor, memory: Memory) -> None:
        """Take a step; see :class:`Sgd`."""
        if self.weight_decay:
            grad = decayed(grad, theta, self.weight_decay, self.trainable)
        first, second = self.betas
        taken, mean, squares = memory["taken"], memory["momentum"], memory["squares"]
        taken.add_(1)
        mean.lerp_(grad, 1 - first)
        squares.mul_(second).addcmul_(grad, grad, value=1 - second)
        root = (squares / (1 - second**taken)).sqrt_().add_(self.eps)
        theta.sub_(lr / (1 - first**taken) * mean / root)
