"""The optimisers of the experts, on flat vectors and in place; their memory is tensors by name."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trajmatch import ops
from trajmatch.networks.flat import decayed

Memory = dict[str, Tensor]


@dataclass(frozen=True)
class Sgd:
    """SGD with momentum: ``b <- mu b + g + wd theta``, ``theta <- theta - lr b``.

    Attributes:
        momentum: ``mu``.
        weight_decay: ``wd``.
        trainable: Mask of the parameters that decay, ``[P]``; None: all of them.
    """

    momentum: float = 0.0
    weight_decay: float = 0.0
    trainable: Tensor | None = None

    def memory(self, theta: Tensor) -> Memory:
        """Return ``b`` before the first step: zeros, which change no bit of that step."""
        return {"momentum": torch.zeros_like(theta)}

    def __call__(self, theta: Tensor, grad: Tensor, lr: Tensor, memory: Memory) -> None:
        """Take a step.

        Args:
            theta: Parameters. ``[P]``; is changed.
            grad: Gradient at them. ``[P]``.
            lr: Learning rate. ``[]``.
            memory: As :meth:`memory` makes it; is changed.
        """
        if self.weight_decay:
            grad = decayed(grad, theta, self.weight_decay, self.trainable)
        stepped, buffer = ops.sgd_step(theta, grad, lr, memory["momentum"], self.momentum)
        theta.copy_(stepped)
        memory["momentum"].copy_(buffer)


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma and Ba, 2015) with weight decay in the gradient, as ``torch.optim.Adam``.

    Attributes:
        weight_decay: Factor of the parameters that is added to the gradient.
        betas: Decay of the means of gradients and of their squares.
        eps: Added to the root of the latter.
        trainable: Mask of the parameters that decay, ``[P]``; None: all of them.
    """

    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    trainable: Tensor | None = None

    def memory(self, theta: Tensor) -> Memory:
        """Return the means before the first step, and the number of steps taken."""
        zeros = torch.zeros_like
        return {"momentum": zeros(theta), "squares": zeros(theta), "taken": theta.new_zeros(())}

    def __call__(self, theta: Tensor, grad: Tensor, lr: Tensor, memory: Memory) -> None:
        """Take a step; the arguments are those of :class:`Sgd`."""
        if self.weight_decay:
            grad = decayed(grad, theta, self.weight_decay, self.trainable)
        first, second = self.betas
        taken, mean, squares = memory["taken"], memory["momentum"], memory["squares"]
        taken.add_(1)
        mean.lerp_(grad, 1 - first)
        squares.mul_(second).addcmul_(grad, grad, value=1 - second)
        root = (squares / (1 - second**taken)).sqrt_().add_(self.eps)
        theta.sub_(lr / (1 - first**taken) * mean / root)
