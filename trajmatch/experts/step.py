"""One training step of an expert, as a function of its state and its batch alone.

What a step changes is in :class:`ExpertState`, in place, and what differs from step to step is in
:class:`Batch`, all of it tensors. So it does not matter to a step how it is run: called, or
recorded once and replayed on the same memory (:mod:`trajmatch.experts.lockstep`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trajmatch import ops


class ExpertState(NamedTuple):
    """What a step changes, in place.

    Attributes:
        theta: Parameters. ``[P]``, float32.
        buffer: Momentum buffer. ``[P]``; at first zeros, with which the first step is the one
            without a buffer, bit by bit.
    """

    theta: Tensor
    buffer: Tensor

    @classmethod
    def begin(cls, theta: Tensor) -> ExpertState:
        """The state before the first step.

        Args:
            theta: Initialisation. ``[P]``; stays as it is.
        """
        return cls(theta.clone(), torch.zeros_like(theta))


class Batch(NamedTuple):
    """What a step reads that differs from step to step, on the device of the images.

    Attributes:
        indices: Which images. ``[B]``, int64.
        dsa: How each is augmented (:func:`trajmatch.ops.dsa`). ``[B, 5]``, float64; ``[B, 0]``
            where none is.
        lr: Learning rate. ``[]``, float32.
    """

    indices: Tensor
    dsa: Tensor
    lr: Tensor

    def of(self, expert: int) -> Batch:
        """The batch of one expert, where the batches of several are stacked."""
        return Batch(*(each[expert] for each in self))


@dataclass(frozen=True)
class ExpertStep:
    """A step of SGD on the real images: normalised, augmented, differentiated.

    Attributes:
        model: The experts' network; its own parameters are not used.
        images: All training images. ``[n, C, H, W]``, uint8.
        labels: ``[n]``, int64.
        normalise: Maps pixels to inputs of the network.
        momentum: Factor of the momentum buffer.
        weight_decay: Factor of the parameters that is added to the gradient.
    """

    model: nn.Module
    images: Tensor
    labels: Tensor
    normalise: Callable[[Tensor], Tensor]
    momentum: float
    weight_decay: float

    def __call__(self, state: ExpertState, batch: Batch) -> Tensor:
        """Takes the step.

        Args:
            state: Is brought forward.
            batch: What the expert sees.

        Returns:
            The loss before the step. ``[]``, float32.
        """
        inputs = self.normalise(self.images[batch.indices])
        if batch.dsa.shape[1] > 0:
            inputs = ops.dsa(inputs, batch.dsa)
        loss, grad = ops.gradient(self.model, state.theta, inputs, self.labels[batch.indices])
        if self.weight_decay:
            grad = grad.add(state.theta, alpha=self.weight_decay)
        theta, buffer = ops.sgd_step(state.theta, grad, batch.lr, state.buffer, self.momentum)
        state.theta.copy_(theta)
        state.buffer.copy_(buffer)
        return loss
