"""A batch in parts: the memory of a few images, the gradient of all.

The loss of a batch is the mean over its images, so for a network that treats each image alone it is
the weighted mean over parts of the batch, and so are its derivatives.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

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
