"""Epochs of a group of experts: order of the images, augmentation, learning rate, loss scale."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from trajmatch.data import DSA, Dataset
from trajmatch.errors import UserError
from trajmatch.experts.config import Schedule
from trajmatch.experts.scores import Scores
from trajmatch.experts.step import Batch
from trajmatch.ops.dsa_parameters import COLUMNS
from trajmatch.random import generator


def decay_epoch(epochs: int) -> int:
    """Return the index of the last epoch at the initial learning rate (MTT, AST)."""
    return epochs // 2 + 1


def learning_rate(recipe: dict[str, Any], index: int) -> float:
    """Return the learning rate of a recipe in the epoch ``index``, counted from 0."""
    decayed = index > decay_epoch(recipe["epochs"])
    return float(recipe["lr"] * recipe["lr_decay"] if decayed else recipe["lr"])


def loss_scale(recipe: dict[str, Any], index: int) -> float:
    """Return the loss factor of epoch ``index``: 1, or rising from 0.5 to 1 in ten epochs (AST)."""
    return 1.0 if recipe["loss_scale"] == "constant" or index >= 10 else 0.5 + 0.05 * index


class Epoch(Batch):
    """One epoch of several experts, which :meth:`batches` splits into batches.

    The fields are those of :class:`Batch` for ``n`` images: ``indices [experts, n]``,
    ``dsa [experts, n, 5]``, and ``lr`` and ``loss_scale``, both ``[experts, steps]``.
    """

    def to(self, device: str | torch.device) -> "Epoch":
        """Move the whole epoch to a device at once: a transfer per batch would block the host."""
        return Epoch(*(each.to(device) for each in self))

    def batches(self, size: int, together: int, taken: int = 0) -> Iterator[tuple[int, Batch]]:
        """Yield the number of steps taken before a batch, and the batch, from step ``taken`` on.

        Each tensor has a leading dimension, the number of steps: ``together``, or 1 at the end of
        the epoch, where fewer full batches are left. The last batch may be smaller.
        """
        count = self.indices.shape[1]
        while taken < self.lr.shape[1]:
            steps = together if (taken + together) * size <= count else 1
            images = slice(taken * size, (taken + steps) * size)
            rows = [each[:, images].unflatten(1, (steps, -1)) for each in self[:2]]
            rows += [each[:, taken : taken + steps] for each in self[2:]]
            # From [K, S, ...] to [S, K, ...].
            yield taken, Batch(*(each.transpose(0, 1).contiguous() for each in rows))
            taken += steps


class Curriculum:
    """Training images of each class, sorted by difficulty; ``fingerprint`` hashes the scores.

    Raises UserError if epoch 0 would see no image of a class.
    """

    def __init__(self, schedule: Schedule, training: Dataset, scores: Scores) -> None:
        self._schedule, self._classes, self.fingerprint = schedule, [], scores.fingerprint
        for label, name in enumerate(training.class_names):
            members = (training.train_labels == label).nonzero().squeeze(1)
            # A stable sort gives the same order everywhere, also for equal scores.
            self._classes.append(members[scores.values[members].argsort(stable=True)])
            if int(schedule.first * len(members)) == 0:
                raise UserError(
                    f"--curriculum starts with {schedule.first:g} of each class, which leaves no "
                    f"image of class {name!r} (it has {len(members)}); start with a larger fraction"
                )

    def images(self, epoch: int) -> Tensor:
        """Return the indices ``[n]``, int64, of the images of an epoch; epochs count from 0."""
        low, high = self._schedule.part(epoch)
        sizes = [(each, len(each)) for each in self._classes]
        return torch.cat([each[int(low * size) : int(high * size)] for each, size in sizes])


def drawn_epochs(
    recipe: dict[str, Any],
    seed: int,
    experts: Sequence[int],
    shape: Sequence[int],
    curriculum: Curriculum | None = None,
) -> Iterator[Epoch]:
    """Draw random epochs on the CPU, without end; each expert has its own random generators."""
    dsa, size = DSA(recipe["dsa"]), recipe["batch_size"]
    orders = [generator(seed, "expert", expert, "order") for expert in experts]
    augmentations = [generator(seed, "expert", expert, "dsa") for expert in experts]
    for index in itertools.count():
        seen = None if curriculum is None else curriculum.images(index)
        count = shape[0] if seen is None else len(seen)
        # Rounded up: the last batch may be smaller.
        steps = len(experts), -(-count // size)
        places = torch.stack([torch.randperm(count, generator=order) for order in orders])
        # `places [experts, n]` are positions in `seen`, or image indices if all images are seen.
        yield Epoch(
            places if seen is None else seen[places],
            torch.stack([_dsa_rows(dsa, each, count, size, shape) for each in augmentations]),
            torch.full(steps, learning_rate(recipe, index), dtype=torch.float32),
            torch.full(steps, loss_scale(recipe, index), dtype=torch.float32),
        )


def _dsa_rows(
    dsa: DSA, augmentation: torch.Generator, count: int, size: int, shape: Sequence[int]
) -> Tensor:
    """Draw one expert's DSA parameters for an epoch: ``[n, 5]``, or ``[n, 0]`` without DSA."""
    if dsa.spec == "none":
        return torch.empty(count, 0, dtype=torch.float64)
    rows = torch.empty(count, COLUMNS, dtype=torch.float64)
    # Batch by batch, because the images of a batch share one kind of transformation.
    for batch in rows.split(min(size, count)):
        batch.copy_(dsa.draw(len(batch), shape[-2], shape[-1], augmentation))
    return rows
