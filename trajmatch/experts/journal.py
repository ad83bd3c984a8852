"""What is kept of an expert's training: snapshots and health."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from trajmatch.experts.step import ExpertState


class Journal:
    """Snapshots and health of one expert, epoch by epoch.

    Args:
        state: The expert before its first step.
        kept: Epochs whose parameters are kept, ascending; 0 is the initialisation.
    """

    def __init__(self, state: ExpertState, kept: Sequence[int]) -> None:
        """Makes room, and keeps the initialisation if it is asked for."""
        self._rows = {epoch: row for row, epoch in enumerate(kept)}
        self.snapshots = torch.empty(len(kept), len(state.theta))
        self.buffers = torch.empty(len(kept), len(state.statistics))
        self._losses: list[float] = []
        self._accuracies: list[float] = []
        self._displacements: list[float] = []
        self._last = state.theta.clone()
        self._keep(0, state)

    def enter(self, epoch: int, state: ExpertState, loss: float, accuracy: float) -> None:
        """Adds an epoch.

        Args:
            epoch: Its number, from 1.
            state: The expert after it.
            loss: Mean cross-entropy of its steps.
            accuracy: Test accuracy after it, in percent.
        """
        self._losses.append(loss)
        self._accuracies.append(accuracy)
        moved = (state.theta - self._last).norm(dtype=torch.float64)
        self._displacements.append(moved.item())
        self._last.copy_(state.theta)
        self._keep(epoch, state)

    def metrics(self, test_accuracy: float) -> dict[str, Any]:
        """Health of the expert, as :meth:`trajmatch.experts.Store.metrics` lists it.

        Args:
            test_accuracy: That of the last epoch on all test images, in percent.
        """
        return {
            "train_loss": self._losses,
            "accuracy": self._accuracies,
            "displacement": self._displacements,
            "test_accuracy": test_accuracy,
        }

    def _keep(self, epoch: int, state: ExpertState) -> None:
        row = self._rows.get(epoch)
        if row is not None:
            self.snapshots[row] = state.theta
            self.buffers[row] = state.statistics
