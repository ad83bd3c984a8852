"""What is kept of an expert's training: snapshots and health."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trajmatch.experts.step import ExpertState

#: One value for each epoch, by name.
Health = Mapping[str, Sequence[float | None]]


class TrajectoryRecorder:
    """Snapshots and health of one expert, epoch by epoch.

    Args:
        state: The expert before its first step.
        kept: Epochs whose parameters are kept, ascending; 0 is the initialisation.
    """

    def __init__(self, state: ExpertState, kept: Sequence[int]) -> None:
        """Makes room, and keeps the initialisation if it is asked for."""
        self._kept = list(kept)
        self.snapshots = torch.empty(len(kept), len(state.theta))
        self.buffers = torch.empty(len(kept), len(state.statistics))
        self._losses: list[float] = []
        self._accuracies: list[float | None] = []
        self._displacements: list[float] = []
        self._last = state.theta.clone()
        self._filled = 0
        self._keep(0, state)

    def record(self, epoch: int, state: ExpertState, loss: float, accuracy: float | None) -> None:
        """Add an epoch.

        Args:
            epoch: Its number, from 1.
            state: The expert after it.
            loss: Mean cross-entropy of its steps.
            accuracy: Test accuracy after it, in percent; None where it was not tested.
        """
        self._losses.append(loss)
        self._accuracies.append(accuracy)
        moved = (state.theta - self._last).norm(dtype=torch.float64)
        self._displacements.append(moved.item())
        self._last.copy_(state.theta)
        self._keep(epoch, state)

    @property
    def accuracy(self) -> float:
        """Test accuracy after the last epoch, which is always tested."""
        last = self._accuracies[-1]
        assert last is not None
        return last

    def metrics(self, test_accuracy: float) -> dict[str, Any]:
        """Health of the expert, as :meth:`trajmatch.experts.Store.metrics` lists it.

        Args:
            test_accuracy: That of the last epoch on all test images, in percent.
        """
        return {**self.health(), "test_accuracy": test_accuracy}

    def health(self) -> Health:
        """Loss, accuracy and displacement of the epochs up to now."""
        return {
            "train_loss": self._losses,
            "accuracy": self._accuracies,
            "displacement": self._displacements,
        }

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint needs beside the :meth:`health`, by name."""
        return {
            "snapshots": self.snapshots[: self._filled],
            "buffers": self.buffers[: self._filled],
            "last": self._last,
        }

    def restore(self, tensors: Mapping[str, Tensor], health: Mapping[str, Any]) -> None:
        """Continue a recording where it was left.

        Args:
            tensors: What :meth:`tensors` gave, perhaps with others.
            health: What :meth:`health` gave.

        Raises:
            KeyError: A part is missing.
            ValueError: The shapes are not those of this expert.
        """
        epochs = len(health["train_loss"])
        filled = sum(epoch <= epochs for epoch in self._kept)
        for memory, name in (
            (self.snapshots[:filled], "snapshots"),
            (self.buffers[:filled], "buffers"),
            (self._last, "last"),
        ):
            value = tensors[name]
            if value.shape != memory.shape or value.dtype != memory.dtype:
                raise ValueError(f"{name} is {value.dtype} {list(value.shape)}")
            memory.copy_(value)
        self._filled = filled
        self._losses = list(health["train_loss"])
        self._accuracies = list(health["accuracy"])
        self._displacements = list(health["displacement"])

    def _keep(self, epoch: int, state: ExpertState) -> None:
        if self._filled < len(self._kept) and self._kept[self._filled] == epoch:
            self.snapshots[self._filled] = state.theta
            self.buffers[self._filled] = state.statistics
            self._filled += 1
