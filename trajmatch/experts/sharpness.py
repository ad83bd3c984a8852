"""FTD's flat trajectories: adaptive GSAM."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

#: Keeps divisions by a norm finite, as in the authors' code.
_TINY = 1e-12


@dataclass(frozen=True)
class Gsam:
    """Surrogate-gap minimisation with steps in units of the parameters (FTD, section 3.3).

    With ``g = dL/dtheta``, the objective is differentiated a second time where it is sharpest
    nearby, at ``theta + rho theta^2 g / | |theta| g |`` (adaptive SAM), on the same batch. Of that
    gradient ``g'`` and the first one's component orthogonal to it, ``v``, the step is made of
    ``g' - alpha v``.

    Attributes:
        rho: How far away, relative to each parameter's size.
        alpha: Share of the orthogonal component.
    """

    rho: float
    alpha: float

    def __call__(self, theta: Tensor, grad: Tensor, gradient: Callable[[Tensor], Tensor]) -> Tensor:
        """The gradient to step along.

        Args:
            theta: Parameters. ``[P]``.
            grad: Gradient at them. ``[P]``.
            gradient: The gradient at other parameters, on the same batch.

        Returns:
            ``[P]``.
        """
        scale = self.rho / ((theta.abs() * grad).norm() + _TINY)
        there = gradient(theta + scale * theta.square() * grad)
        length = there.norm()
        # cos(g, g') |g| is what of g lies along g'
        along = (grad @ there) / (length + _TINY)
        orthogonal = grad - along / (length + _TINY) * there
        return there - self.alpha * orthogonal
