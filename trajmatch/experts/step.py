"""One training step of an expert, as a function of its state and its batch alone.

A step changes :class:`ExpertState` in place and reads :class:`Batch`; all of both are tensors. So
it may be called, or recorded once and replayed on the same memory
(:mod:`trajmatch.experts.lockstep`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from trajmatch import networks, ops
from trajmatch.experts.optimiser import Adam, Memory, Sgd

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
        """Return the derivative of the penalty in the input gradient, both ``[B, C, H, W]``."""
        over = 1 if self.norm == "pixel" else (1, 2, 3)
        norms = torch.linalg.vector_norm(slope, dim=over, keepdim=True)
        # The norm has no derivative where the gradient is 0; 0 is taken there.
        unit = torch.where(norms > 0, slope / norms, torch.zeros_like(slope))
        return 2 * self.weight / norms.numel() * (norms - 1) * unit


@dataclass(frozen=True)
class ExpertState:
    """Tensors that a step changes, in place.

    Attributes:
        theta: Parameters. ``[P]``, float32.
        memory: Memory of the optimiser, by name.
        statistics: The network's buffers, the running statistics of batch norm. ``[Q]``.
    """

    theta: Tensor
    memory: Memory
    statistics: Tensor

    @classmethod
    def begin(cls, model: nn.Module, optimiser: Sgd | Adam) -> ExpertState:
        """Return the state before the first step.

        Args:
            model: The initialised network; it stays as it is.
            optimiser: Takes the steps.
        """
        theta = networks.flat_parameters(model)
        buffers = networks.flat_buffers(model).to(theta.device)
        return cls(theta, optimiser.memory(theta), buffers)

    def tensors(self) -> dict[str, Tensor]:
        """Return all of it by name, for checkpoints."""
        return {"theta": self.theta, **self.memory, "statistics": self.statistics}

    def restart_optimiser(self) -> None:
        """Set the optimiser's memory to zero."""
        for memory in self.memory.values():
            memory.zero_()


class Batch(NamedTuple):
    """Inputs of a step that differ from step to step, on the device of the images.

    Attributes:
        indices: Numbers of the images. ``[B]``, int64.
        dsa: Augmentation of each (:func:`trajmatch.ops.dsa`). ``[B, 5]``, float64; ``[B, 0]``
            without augmentation.
        lr: Learning rate. ``[]``, float32.
        loss_scale: Factor of the loss (AST: ``c_e``). ``[]``, float32.
    """

    indices: Tensor
    dsa: Tensor
    lr: Tensor
    loss_scale: Tensor

    def of(self, expert: int) -> Batch:
        """Return the batch of one expert of several stacked ones."""
        return Batch(*(each[expert] for each in self))


@dataclass(frozen=True)
class ExpertStep:
    """A step on the real images: normalised, augmented, differentiated.

    Attributes:
        model: The expert's network; of its own tensors only the buffers are used, as workspace.
        images: All training images. ``[n, C, H, W]``, uint8.
        labels: ``[n]``, int64; for the mean squared error targets ``[n, D]``, float32.
        normalise: Maps pixels to inputs of the network.
        optimiser: Makes a step of a gradient.
        penalty: AST's penalty on input gradients, where there is one.
        gsam: FTD's flattening, where there is one.
        loss: As for :func:`trajmatch.ops.gradient`.
    """

    model: nn.Module
    images: Tensor
    labels: Tensor
    normalise: Callable[[Tensor], Tensor]
    optimiser: Sgd | Adam = field(default_factory=Sgd)
    penalty: GradientPenalty | None = None
    gsam: Gsam | None = None
    loss: str = "cross_entropy"

    def __call__(self, state: ExpertState, batch: Batch) -> Tensor:
        """Take the step.

        Args:
            state: Is changed in place.
            batch: The images and how they are seen.

        Returns:
            The loss before the step. ``[]``, float32.
        """
        plain = self.normalise(self.images[batch.indices])
        shown = ops.dsa(plain, batch.dsa) if batch.dsa.shape[1] > 0 else plain
        labels = self.labels[batch.indices]
        has_statistics = len(state.statistics) > 0
        if has_statistics:
            networks.load_flat_buffers(self.model, state.statistics)

        def gradient(theta: Tensor, counts: bool = False) -> tuple[Tensor, Tensor]:
            """Return loss and gradient of the objective; update running statistics if it counts."""
            at = (self.model, theta, shown, labels, self.loss)
            loss, grad = ops.gradient(*at, update_buffers=counts)
            grad = grad * batch.loss_scale
            if self.penalty is not None:
                grad = grad + self.penalty.gradient(self.model, theta, plain)
            return loss, grad

        loss, grad = gradient(state.theta, counts=True)
        if self.gsam is not None:
            grad = self.gsam(state.theta, grad, lambda theta: gradient(theta)[1])
        self.optimiser(state.theta, grad, batch.lr, state.memory)
        if has_statistics:
            state.statistics.copy_(networks.flat_buffers(self.model))
        return loss
