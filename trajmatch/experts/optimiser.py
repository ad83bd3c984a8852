"""The optimisers of the experts, on flat vectors and in place."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from trajmatch import ops
from trajmatch.networks.flat import decayed


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

    def __call__(
        self,
        theta: Tensor,
        grad: Tensor,
        lr: Tensor,
        momentum: Tensor,
        squares: Tensor,
        taken: Tensor,
    ) -> None:
        """Take a step.

        Args:
            theta: Parameters. ``[P]``; is changed.
            grad: Gradient at them. ``[P]``.
            lr: Learning rate. ``[]``.
            momentum: Momentum buffer ``b``. ``[P]``; is changed.
            squares: Not used.
            taken: Not used.
        """
        if self.weight_decay:
            grad = decayed(grad, theta, self.weight_decay, self.trainable)
        stepped, buffer = ops.sgd_step(theta, grad, lr, momentum, self.momentum)
        theta.copy_(stepped)
        momentum.copy_(buffer)


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

    def __call__(
        self,
        theta: Tensor,
        grad: Tensor,
        lr: Tensor,
        momentum: Tensor,
        squares: Tensor,
        taken: Tensor,
    ) -> None:
        """Take a step.

        Args:
            theta: Parameters. ``[P]``; is changed.
            grad: Gradient at them. ``[P]``.
            lr: Learning rate. ``[]``.
            momentum: Mean of the gradients. ``[P]``; is changed.
            squares: Mean of their squares. ``[P]``; is changed.
            taken: Steps done. ``[]``; is changed.
        """
        if self.weight_decay:
            grad = decayed(grad, theta, self.weight_decay, self.trainable)
        first, second = self.betas
        taken.add_(1)
        momentum.lerp_(grad, 1 - first)
        squares.mul_(second).addcmul_(grad, grad, value=1 - second)
        root = (squares / (1 - second**taken)).sqrt_().add_(self.eps)
        theta.sub_(lr / (1 - first**taken) * momentum / root)
