"""The record of an expert's training: snapshots and health."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NotRequired, TypedDict

import torch
from torch import Tensor

from trajmatch.experts.step import ExpertState


class Health(TypedDict):
    """One value for each epoch; the test of an epoch without one is None.

    It is the ``accuracy`` in percent, or for targets the ``error`` (mean squared).
    """

    train_loss: list[float]
    accuracy: NotRequired[list[float | None]]
    error: NotRequired[list[float | None]]
    displacement: list[float]


def tests_of(health: Health) -> list[float | None]:
    """Return the tests of an expert, whatever they measured."""
    return health["error"] if "error" in health else health["accuracy"]


class TrajectoryRecorder:
    """Snapshots and health of one expert, epoch by epoch.

    Args:
        state: The expert before its first step.
        kept: Epochs whose parameters are kept, ascending; 0 is the initialisation.
        loss: The loss that it trains with, as for :func:`trajmatch.ops.gradient`.

    Attributes:
        snapshots: Parameters after the epochs kept. ``[S, P]``, float32, on the CPU.
        buffers: Buffers of the network that belong to them. ``[S, Q]``.
        health: ``train_loss``, ``accuracy`` (or ``error``) and ``displacement`` of the epochs
            recorded.
    """

    def __init__(
        self, state: ExpertState, kept: Sequence[int], loss: str = "cross_entropy"
    ) -> None:
        """Allocate memory and keep the initialisation if it is asked for."""
        self._kept = list(kept)
        self.snapshots = torch.empty(len(kept), len(state.theta))
        self.buffers = torch.empty(len(kept), len(state.statistics))
        self.health: Health = (
            {"train_loss": [], "error": [], "displacement": []}
            if loss == "mse"
            else {"train_loss": [], "accuracy": [], "displacement": []}
        )
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
        tests_of(self.health).append(tested)
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
