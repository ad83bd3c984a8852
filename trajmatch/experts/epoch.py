"""What the experts of a group see in an epoch: the order of the images and their augmentation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trajmatch.data.dsa import DSA
from trajmatch.experts.schedule import learning_rate, loss_scale
from trajmatch.experts.step import Batch
from trajmatch.ops.dsa_parameters import COLUMNS
from trajmatch.random import generator


class Epoch(NamedTuple):
    """An epoch of several experts, cut up into batches of the same sizes.

    Attributes:
        indices: The images in the order in which each expert sees them. ``[experts, n]``, int64.
        dsa: How they are augmented. ``[experts, n, 5]``, float64; ``[experts, n, 0]`` without.
        lr: Learning rate of each step. ``[experts, steps]``, float32.
        loss_scale: Factor of the loss in each step. ``[experts, steps]``, float32.
    """

    indices: Tensor
    dsa: Tensor
    lr: Tensor
    loss_scale: Tensor

    def to(self, device: str | torch.device) -> Epoch:
        """The epoch on a device, moved at once: every move makes the host wait."""
        return Epoch(*(each.to(device) for each in self))

    def batches(self, size: int) -> Iterator[Batch]:
        """The batches of every step, those of all experts stacked; the last may be smaller.

        Args:
            size: Images in a batch; at most all are taken.
        """
        size = min(size, self.indices.shape[1])
        columns = zip(
            self.indices.split(size, dim=1),
            self.dsa.split(size, dim=1),
            self.lr.unbind(1),
            self.loss_scale.unbind(1),
            strict=True,
        )
        for each in columns:
            yield Batch(*each)


class EpochDraws:
    """Draws the epochs of several experts, each from generators of its own.

    Args:
        recipe: ``recipe`` of the store's manifest.
        seed: Its ``seed``.
        experts: Numbers of the experts.
        shape: Shape of the training images, ``[n, C, H, W]``.
    """

    def __init__(
        self, recipe: dict[str, Any], seed: int, experts: Sequence[int], shape: Sequence[int]
    ) -> None:
        self._recipe, self._shape, self._drawn = recipe, shape, 0
        self._dsa = DSA(recipe["dsa"])
        self._orders = [generator(seed, "expert", expert, "order") for expert in experts]
        self._augmentations = [generator(seed, "expert", expert, "dsa") for expert in experts]

    def skip(self, epochs: int) -> None:
        """Goes past epochs that are done: their draws are made and forgotten."""
        for _ in range(epochs):
            self.draw()

    def draw(self) -> Epoch:
        """The next epoch, on the CPU."""
        count = self._shape[0]
        steps = -(-count // self._recipe["batch_size"])
        shape = len(self._orders), steps
        index, self._drawn = self._drawn, self._drawn + 1
        return Epoch(
            torch.stack([torch.randperm(count, generator=order) for order in self._orders]),
            torch.stack([self._rows(augmentation) for augmentation in self._augmentations]),
            torch.full(shape, learning_rate(self._recipe, index), dtype=torch.float32),
            torch.full(shape, loss_scale(self._recipe, index), dtype=torch.float32),
        )

    def _rows(self, augmentation: torch.Generator) -> Tensor:
        """DSA's parameters for the images of an expert, drawn batch by batch. ``[n, 5]``."""
        count, _, height, width = self._shape
        if self._dsa.spec == "none":
            return torch.empty(count, 0, dtype=torch.float64)
        rows = torch.empty(count, COLUMNS, dtype=torch.float64)
        for batch in rows.split(min(self._recipe["batch_size"], count)):
            batch.copy_(self._dsa.draw(len(batch), height, width, augmentation).rows)
        return rows
