"""A batch in parts: the memory of a few images, the gradient of all.

The loss of a batch is the mean over its images, so for a network that treats each image alone it is
the weighted mean over parts of the batch, and so are its derivatives.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from trajmatch.ops.loop import StepJvp, Student


class MicroBatches:
    """A student that takes a few images of a batch at a time; equal up to the order of sums.

    Args:
        student: The student that it is made of.
        most: Images at a time.
    """

    def __init__(self, student: Student, most: int) -> None:
        self._student, self._most = student, most

    def gradient(self, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """The gradient of the loss of a batch in the parameters. ``[P]``."""
        total = torch.zeros_like(theta)
        for part, targets, weight in self._parts(images, labels):
            total += weight * self._student.gradient(theta, part, targets)
        return total

    def jvp(self, theta: Tensor, images: Tensor, labels: Tensor, r: Tensor) -> StepJvp:
        """Its derivative along ``r``, with those of loss, images and labels."""
        directional, grad_theta = torch.zeros_like(theta[0]), torch.zeros_like(theta)
        gradient = torch.zeros_like(theta)
        of_images, of_labels = [], []
        for part, targets, weight in self._parts(images, labels):
            found = self._student.jvp(theta, part, targets, r)
            directional += weight * found.directional
            grad_theta += weight * found.grad_theta
            of_images.append(weight * found.grad_images)
            if found.grad_labels is not None:
                of_labels.append(weight * found.grad_labels)
            if found.gradient is not None:
                gradient += weight * found.gradient
        grad_labels = torch.cat(of_labels) if of_labels else None
        return StepJvp(directional, grad_theta, torch.cat(of_images), grad_labels, gradient)

    def _parts(self, images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor, float]]:
        """Images and labels of each part, and its share of the batch."""
        pairs = zip(images.split(self._most), labels.split(self._most), strict=True)
        for part, targets in pairs:
            yield part, targets, len(part) / len(images)
