"""Student batches in parts: one after another in one process, or shared by several.

The loss of a batch is the mean over its images, so for a network that treats each image alone it is
the weighted mean over parts of the batch, and so are its derivatives.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from trajmatch.ops.arguments import Augment, DsaReplay
from trajmatch.ops.dsa import dsa
from trajmatch.ops.loop import Gradients, Loop, Steps
from trajmatch.ops.student import Point, Student
from trajmatch.reference import GradientJvp


class MicroBatches:
    """A student that takes a few images of a batch at a time; equal up to the order of sums.

    Args:
        student: The student that it is made of.
        most: Images at a time.
    """

    def __init__(self, student: Student, most: int) -> None:
        self._student, self._most = student, most

    def gradient(self, at: Point) -> tuple[Tensor, Tensor]:
        """Loss of a batch and its gradient in the parameters."""
        value, total = at.theta.new_zeros(()), torch.zeros_like(at.theta)
        for part, weight in self._parts(at):
            share, grad = self._student.gradient(part)
            value += weight * share
            total += weight * grad
        return value, total

    def jvp(self, at: Point, tangent: Tensor) -> tuple[Tensor | None, GradientJvp]:
        """The gradient again, and its derivatives along a direction of the parameters."""
        directional, grad_theta = at.theta.new_zeros(()), torch.zeros_like(at.theta)
        gradient, of_images, of_labels = torch.zeros_like(at.theta), [], []
        for part, weight in self._parts(at):
            again, found = self._student.jvp(part, tangent)
            directional += weight * found.directional
            grad_theta += weight * found.grad_theta
            if found.grad_images is not None:
                of_images.append(weight * found.grad_images)
            if found.grad_labels is not None:
                of_labels.append(weight * found.grad_labels)
            if again is not None:
                gradient += weight * again
        inputs = (torch.cat(each) if each else None for each in (of_images, of_labels))
        return gradient, GradientJvp(directional, grad_theta, *inputs)

    def _parts(self, at: Point) -> Iterator[tuple[Point, float]]:
        """Each part, and its share of the batch."""
        pairs = zip(at.images.split(self._most), at.labels.split(self._most), strict=True)
        for images, labels in pairs:
            yield Point(at.theta, images, labels), len(images) / len(at.images)


class Shards(Protocol):
    """Processes that share every batch; :class:`trajmatch.parallel.Ranks` is one.

    Attributes:
        rank: Number of this process, from 0.
        size: How many there are.
    """

    rank: int
    size: int

    def sum_(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over all processes, the same bits in each."""


class ShardedLoop(Loop):
    """The loop of a process that takes its part of every batch.

    The mean over a batch of ``B`` images is the sum over the parts of ``b / B`` times the mean over
    a part of ``b``; the gradient and its derivative along ``r`` are linear in that factor. What the
    adjoint of a step needs whole (``g_t`` and ``H r``) is summed over the processes in the step;
    the gradients of images, labels and step size are summed once, at the end.

    Args:
        shards: The processes.
        student: The student.
        steps: What its steps are, with whole batches.
        model: As for :class:`Loop`.

    Raises:
        NotImplementedError: ``augment`` is another function, which cannot be applied to a part.
    """

    def __init__(
        self, shards: Shards, student: Student, steps: Steps, model: nn.Module | None = None
    ) -> None:
        batches, augment = steps.batches, steps.augment
        if augment is not None and not isinstance(augment, DsaReplay):
            raise NotImplementedError(
                "trajmatch::unroll: expected augment to be None or a DsaReplay where processes "
                f"share the batches, but got {augment!r}"
            )
        parts = [_part(len(batch), shards) for batch in batches]
        own = [batch[part] for batch, part in zip(batches, parts, strict=True)]
        if augment is not None:
            augment = _part_of_dsa(augment, [len(batch) for batch in batches], parts)
        super().__init__(student, steps._replace(batches=own, augment=augment), model)
        self.shards = shards
        self.weights = [len(mine) / len(batch) for mine, batch in zip(own, batches, strict=True)]

    def gradient(self, step: int, at: Point) -> Tensor:
        """The gradient of the whole batch. ``[P]``."""
        grad = torch.zeros_like(at.theta)
        if len(at.images) > 0:
            grad = self.weights[step] * super().gradient(step, at)
        self.shards.sum_(grad)
        return grad

    def jvp(self, step: int, at: Point, r: Tensor) -> GradientJvp:
        """The derivatives along ``r``: ``H r`` of the whole batch, the others of this part."""
        if len(at.images) > 0:
            found = super().jvp(step, at, self.weights[step] * r)
        else:
            zeros = (
                torch.zeros_like(each) if each.is_floating_point() else None
                for each in (at.images, at.labels)
            )
            found = GradientJvp(at.theta.new_zeros(()), torch.zeros_like(at.theta), *zeros)
        if self.steps.exact:
            self.shards.sum_(found.grad_theta)
        return found

    def adjoint(self, *problem: Any) -> Gradients:
        """The gradients over all parts."""
        found = super().adjoint(*problem)
        # With updates, those of step sizes and state are whole already.
        for part in found[1 : 4 if self.steps.updates is None else 3]:
            if part is not None:
                self.shards.sum_(part)
        return found


def _part(count: int, shards: Shards) -> slice:
    """The rows of a batch that this process takes: runs of neighbours, as equal as can be."""
    return slice(count * shards.rank // shards.size, count * (shards.rank + 1) // shards.size)


def _part_of_dsa(augment: DsaReplay, sizes: Sequence[int], parts: Sequence[slice]) -> Augment:
    """DSA of a part of every batch, drawn for the whole of it."""

    def augmented(images: Tensor, step: int) -> Tensor:
        if len(images) == 0:
            return images
        rows = augment.dsa_parameters(step, sizes[step], *images.shape[2:])
        return dsa(images, rows[parts[step]].to(images.device))

    return augmented
