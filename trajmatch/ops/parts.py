"""Student batches in parts: one part after another in a process, or one part per process.

This is exact if the network processes each image independently of the others: the loss of a batch
is then a weighted mean of the losses of its parts.
"""

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
    """Student that runs at most ``most`` images at a time, which changes only the order of sums."""

    def __init__(self, student: Student, most: int) -> None:
        self._student, self._most = student, most

    def gradient(self, at: Point) -> tuple[Tensor, Tensor]:
        """Return the loss of a batch and its gradient."""
        value, total = at.theta.new_zeros(()), torch.zeros_like(at.theta)
        for part, weight in self._parts(at):
            share, grad = self._student.gradient(part)
            value += weight * share
            total += weight * grad
        return value, total

    def jvp(self, at: Point, tangent: Tensor) -> tuple[Tensor | None, GradientJvp]:
        """Return the gradient (zeros on the engine), and the derivatives along ``tangent``."""
        directional, grad_theta = at.theta.new_zeros(()), torch.zeros_like(at.theta)
        gradient, of_images, of_labels = torch.zeros_like(at.theta), [], []
        for part, weight in self._parts(at):
            again, found = self._student.jvp(part, tangent)
            directional += weight * found.directional
            grad_theta += weight * found.grad_theta
            # Every image and label is in one part only, so these are concatenated instead of added.
            if found.grad_images is not None:
                of_images.append(weight * found.grad_images)
            if found.grad_labels is not None:
                of_labels.append(weight * found.grad_labels)
            if again is not None:
                gradient += weight * again
        inputs = (torch.cat(each) if each else None for each in (of_images, of_labels))
        return gradient, GradientJvp(directional, grad_theta, *inputs)

    def _parts(self, at: Point) -> Iterator[tuple[Point, float]]:
        """Yield each part and its share of the batch, as a fraction."""
        pairs = zip(at.images.split(self._most), at.labels.split(self._most), strict=True)
        for images, labels in pairs:
            yield Point(at.theta, images, labels), len(images) / len(at.images)


class Shards(Protocol):
    """Processes that share every batch, such as :class:`trajmatch.parallel.Ranks`.

    Attributes:
        rank: Number of this process; the first is 0.
        size: Number of processes.
    """

    rank: int
    size: int

    def sum_(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over all processes, with the same bits in each."""


class ShardedLoop(Loop):
    """Loop of one of several processes, which each take a part of every batch.

    ``augment`` must be None or a :class:`DsaReplay`.
    """

    def __init__(
        self, shards: Shards, student: Student, steps: Steps, model: nn.Module | None = None
    ) -> None:
        batches, augment = steps.batches, steps.augment
        if augment is not None and not isinstance(augment, DsaReplay):
            raise NotImplementedError(
                "trajmatch::unroll: expected augment to be None or a DsaReplay if shards is given, "
                f"but got {augment!r}"
            )
        parts = [_part(len(batch), shards) for batch in batches]
        own = [batch[part] for batch, part in zip(batches, parts, strict=True)]
        if augment is not None:
            augment = _part_of_dsa(augment, [len(batch) for batch in batches], parts)
        super().__init__(student, steps._replace(batches=own, augment=augment), model)
        self.shards = shards
        # The mean over B images is a sum over parts: b / B times the mean over a part's b images.
        self.weights = [len(mine) / len(batch) for mine, batch in zip(own, batches, strict=True)]

    def gradient(self, step: int, at: Point) -> Tensor:
        """Return the gradient ``[P]`` of the whole batch."""
        grad = torch.zeros_like(at.theta)
        if len(at.images) > 0:
            grad = self.weights[step] * super().gradient(step, at)
        # Every process takes the same step, so each needs the gradient of the whole batch.
        self.shards.sum_(grad)
        return grad

    def jvp(self, step: int, at: Point, r: Tensor) -> GradientJvp:
        """Return the derivatives along ``r``; only ``grad_theta`` is summed over the processes."""
        if len(at.images) > 0:
            found = super().jvp(step, at, self.weights[step] * r)
        else:
            # A batch smaller than the number of processes leaves some processes without images.
            zeros = (
                torch.zeros_like(each) if each.is_floating_point() else None
                for each in (at.images, at.labels)
            )
            found = GradientJvp(at.theta.new_zeros(()), torch.zeros_like(at.theta), *zeros)
        # The adjoint needs H r of the whole batch to continue with the step before.
        if self.steps.exact:
            self.shards.sum_(found.grad_theta)
        return found

    def adjoint(self, *problem: Any) -> Gradients:
        """Return the gradients, summed over the processes."""
        found = super().adjoint(*problem)
        # found[1:4] are the gradients of images, labels and step size, so far for this process's
        # parts only. With updates, the gradient of the step size is already for whole batches, as
        # the gradients of theta0 and state always are.
        for part in found[1 : 4 if self.steps.updates is None else 3]:
            if part is not None:
                self.shards.sum_(part)
        return found


def _part(count: int, shards: Shards) -> slice:
    """Return the rows of a batch that this process takes; parts differ in size by at most 1."""
    return slice(count * shards.rank // shards.size, count * (shards.rank + 1) // shards.size)


def _part_of_dsa(augment: DsaReplay, sizes: Sequence[int], parts: Sequence[slice]) -> Augment:
    """Return an augmentation for this process's part of each batch."""

    def augmented(images: Tensor, step: int) -> Tensor:
        if len(images) == 0:
            return images
        # Draw for the whole batch and take this part's rows: the same draws as in one process.
        rows = augment.dsa_parameters(step, sizes[step], *images.shape[2:])
        return dsa(images, rows[parts[step]].to(images.device))

    return augmented
