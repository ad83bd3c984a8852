"""Recording of an expert's snapshots and health during training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trajmatch.experts.step import ExpertState

#: Health of an expert: ``train_loss``, ``displacement``, and ``accuracy`` or ``error``, each with
#: one value per epoch. A test result is None if the epoch was not tested.
Health = dict[str, list[float | None]]


def measure_of(loss: str) -> str:
    """Return the test measure: ``error`` (mean squared) for mse, else ``accuracy`` (percent)."""
    return "error" if loss == "mse" else "accuracy"


class TrajectoryRecorder:
    """Recorder of one expert's health, and of its snapshots after the epochs ``kept``.

    ``kept`` ascends; epoch 0 is the initialisation. ``snapshots [S, P]`` and ``buffers [S, Q]``
    have a row for each kept epoch: float32, on the CPU.
    """

    def __init__(self, state: ExpertState, kept: Sequence[int], measure: str = "accuracy") -> None:
        self._kept, self._measure = list(kept), measure
        self.snapshots = torch.empty(len(kept), len(state.theta))
        self.buffers = torch.empty(len(kept), len(state.statistics))
        self.health: Health = {"train_loss": [], measure: [], "displacement": []}
        self._last = state.theta.clone()
        self._filled = 0
        self._keep(0, state)

    def record(self, epoch: int, state: ExpertState, loss: float, tested: float | None) -> None:
        """Record state, mean loss and test result (or None) of an epoch; the first epoch is 1."""
        moved = (state.theta - self._last).norm(dtype=torch.float64).item()
        self.health["train_loss"].append(loss)
        self.health[self._measure].append(tested)
        self.health["displacement"].append(moved)
        self._last.copy_(state.theta)
        self._keep(epoch, state)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors to save in a checkpoint, by name."""
        return {
            "snapshots": self.snapshots[: self._filled],
            "buffers": self.buffers[: self._filled],
            "last": self._last,
        }

    def restore(self, health: Health) -> None:
        """Set the health and the number of filled rows; the caller then fills :meth:`tensors`."""
        self.health = health
        epochs = len(health["train_loss"])
        self._filled = sum(epoch <= epochs for epoch in self._kept)

    def _keep(self, epoch: int, state: ExpertState) -> None:
        # Epochs arrive in ascending order, so only the next kept epoch can match.
        if self._filled < len(self._kept) and self._kept[self._filled] == epoch:
            self.snapshots[self._filled] = state.theta
            self.buffers[self._filled] = state.statistics
            self._filled += 1
