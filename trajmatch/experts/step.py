"""One training step of an expert, as a function of its state and its batch alone.

What a step changes is in :class:`ExpertState`, in place, and what differs from step to step is in
:class:`Batch`, all of it tensors. So it does not matter to a step how it is run: called, or
recorded once and replayed on the same memory (:mod:`trajmatch.experts.lockstep`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trajmatch import networks, ops
from trajmatch.experts.optimiser import Adam, Sgd
from trajmatch.experts.penalty import GradientPenalty
from trajmatch.experts.sharpness import Gsam


class ExpertState(NamedTuple):
    """What a step changes, in place.

    Attributes:
        theta: Parameters. ``[P]``, float32.
        momentum: The optimiser's mean of gradients. ``[P]``; at first zeros, with which the first
            step is the one without a buffer, bit by bit.
        squares: Adam's mean of their squares. ``[P]``; ``[0]`` for SGD.
        taken: Steps since the optimiser began. ``[]``, float32.
        statistics: The network's buffers, the running statistics of batch norm. ``[Q]``.
    """

    theta: Tensor
    momentum: Tensor
    squares: Tensor
    taken: Tensor
    statistics: Tensor

    @classmethod
    def begin(cls, model: nn.Module, optimiser: Sgd | Adam) -> ExpertState:
        """The state before the first step.

        Args:
            model: The initialised network; it stays as it is.
            optimiser: What will take the steps.
        """
        theta = networks.flat_parameters(model)
        return cls(
            theta,
            torch.zeros_like(theta),
            torch.zeros_like(theta) if isinstance(optimiser, Adam) else theta.new_zeros(0),
            theta.new_zeros(()),
            networks.flat_buffers(model).to(theta.device),
        )

    def restart_optimiser(self) -> None:
        """Forgets what the optimiser remembers."""
        for memory in (self.momentum, self.squares, self.taken):
            memory.zero_()


class Batch(NamedTuple):
    """What a step reads that differs from step to step, on the device of the images.

    Attributes:
        indices: Which images. ``[B]``, int64.
        dsa: How each is augmented (:func:`trajmatch.ops.dsa`). ``[B, 5]``, float64; ``[B, 0]``
            where none is.
        lr: Learning rate. ``[]``, float32.
        loss_scale: Factor of the loss (AST: ``c_e``). ``[]``, float32.
    """

    indices: Tensor
    dsa: Tensor
    lr: Tensor
    loss_scale: Tensor

    def of(self, expert: int) -> Batch:
        """The batch of one expert, where the batches of several are stacked."""
        return Batch(*(each[expert] for each in self))


@dataclass(frozen=True)
class ExpertStep:
    """A step on the real images: normalised, augmented, differentiated.

    Attributes:
        model: The expert's network; of its own tensors only the buffers are used, as workspace.
        images: All training images. ``[n, C, H, W]``, uint8.
        labels: ``[n]``, int64.
        normalise: Maps pixels to inputs of the network.
        optimiser: What makes a step of a gradient.
        penalty: AST's penalty on input gradients, where there is one.
        gsam: FTD's flattening, where there is one.
    """

    model: nn.Module
    images: Tensor
    labels: Tensor
    normalise: Callable[[Tensor], Tensor]
    optimiser: Sgd | Adam = field(default_factory=Sgd)
    penalty: GradientPenalty | None = None
    gsam: Gsam | None = None

    def __call__(self, state: ExpertState, batch: Batch) -> Tensor:
        """Takes the step.

        Args:
            state: Is brought forward.
            batch: What the expert sees.

        Returns:
            The cross-entropy before the step. ``[]``, float32.
        """
        plain = self.normalise(self.images[batch.indices])
        shown = ops.dsa(plain, batch.dsa) if batch.dsa.shape[1] > 0 else plain
        labels = self.labels[batch.indices]
        has_statistics = len(state.statistics) > 0
        if has_statistics:
            networks.load_flat_buffers(self.model, state.statistics)

        def gradient(theta: Tensor, counts: bool = False) -> tuple[Tensor, Tensor]:
            """Loss and gradient of the whole objective; only what counts enters statistics."""
            loss, grad = ops.gradient(self.model, theta, shown, labels, update_buffers=counts)
            grad = grad * batch.loss_scale
            if self.penalty is not None:
                grad = grad + self.penalty.gradient(self.model, theta, plain)
            return loss, grad

        loss, grad = gradient(state.theta, counts=True)
        if self.gsam is not None:
            grad = self.gsam(state.theta, grad, lambda theta: gradient(theta)[1])
        self.optimiser(state.theta, grad, batch.lr, state.momentum, state.squares, state.taken)
        if has_statistics:
            state.statistics.copy_(networks.flat_buffers(self.model))
        return loss
