"""The record of an expert's training: snapshots and health."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trajmatch.experts.step import ExpertState

#: ``train_loss``, ``displacement``, and the tests by their measure: one value for each epoch, None
#: for an epoch without a test.
Health = dict[str, list[float | None]]


def measure_of(loss: str) -> str:
    """Name what tests measure: ``accuracy``, in percent, or for targets ``error``, mean squared."""
    return "error" if loss == "mse" else "accuracy"


class TrajectoryRecorder:
    """Snapshots and health of one expert, epoch by epoch.

    Args:
        state: The expert before its first step.
        kept: Epochs whose parameters are kept, ascending; 0 is the initialisation.
        measure: What its tests measure: see :func:`measure_of`.

    Attributes:
        snapshots: Parameters after the epochs kept. ``[S, P]``, float32, on the CPU.
        buffers: Buffers of the network that belong to them. ``[S, Q]``.
        health: See :data:`Health`.
    """

    def __init__(self, state: ExpertState, kept: Sequence[int], measure: str = "accuracy") -> None:
        """Allocate memory and keep the initialisation if it is asked for."""
        self._kept, self._measure = list(kept), measure
        self.snapshots = torch.empty(len(kept), len(state.theta))
        self.buffers = torch.empty(len(kept), len(state.statistics))
        self.health: Health = {"train_loss": [], measure: [], "displacement": []}
        self._last = state.theta.clone()
        self._filled = 0
        self._keep(0, state)

    def record(self, epoch: int, state: ExpertState, loss: float, tested: float | None) -> None:
        """Add an epoch.

        Args:
            epoch: Its number, from 1.
            state: The expert after it.
            loss: Mean loss of its steps.
            tested: Test accuracy after it, in percent, or error; None where it was not tested.
        """
        moved = (state.theta - self._last).norm(dtype=torch.float64).item()
        self.health["train_loss"].append(loss)
        self.health[self._measure].append(tested)
        self.health["displacement"].append(moved)
        self._last.copy_(state.theta)
        self._keep(epoch, state)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of a checkpoint, by name."""
        return {
            "snapshots": self.snapshots[: self._filled],
            "buffers": self.buffers[: self._filled],
            "last": self._last,
        }

    def restore(self, health: Health) -> None:
        """Continue a recording where it was left; the :meth:`tensors` are still to be filled."""
        self.health = health
        epochs = len(health["train_loss"])
        self._filled = sum(epoch <= epochs for epoch in self._kept)

    def _keep(self, epoch: int, state: ExpertState) -> None:
        if self._filled < len(self._kept) and self._kept[self._filled] == epoch:
            self.snapshots[self._filled] = state.theta
            self.buffers[self._filled] = state.statistics
            self._filled += 1
