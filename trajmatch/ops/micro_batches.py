"""A batch in parts: the memory of a few images, the gradient of all.

The loss of a batch is the mean over its images, so for a network that treats each image alone it is
the weighted mean over parts of the batch, and so are its derivatives.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from trajmatch.networks.flat import call_flat

#: Logits of an image may differ so much, relative to the largest, when others are beside it:
#: libraries choose other algorithms for other sizes. A batch norm changes them by about their size.
_ROUNDING = 1e-3


class Student(Protocol):
    """One step of a student: what an unrolled loop asks for."""

    def gradient(self, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """The gradient of the loss of a batch in the parameters. ``[P]``."""

    def jvp(
        self, theta: Tensor, images: Tensor, labels: Tensor, r: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Directional derivatives along ``r``, as :class:`trajmatch.ops.GradientJvp` has them."""


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

    def jvp(
        self, theta: Tensor, images: Tensor, labels: Tensor, r: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Directional derivatives along ``r``, as :class:`trajmatch.ops.GradientJvp` has them."""
        directional, grad_theta = torch.zeros_like(theta[0]), torch.zeros_like(theta)
        of_images, of_labels = [], []
        for part, targets, weight in self._parts(images, labels):
            found = self._student.jvp(theta, part, targets, r)
            directional += weight * found[0]
            grad_theta += weight * found[1]
            of_images.append(weight * found[2])
            if found[3] is not None:
                of_labels.append(weight * found[3])
        grad_labels = torch.cat(of_labels) if of_labels else None
        return directional, grad_theta, torch.cat(of_images), grad_labels

    def _parts(self, images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor, float]]:
        """Images and labels of each part, and its share of the batch."""
        pairs = zip(images.split(self._most), labels.split(self._most), strict=True)
        for part, targets in pairs:
            yield part, targets, len(part) / len(images)


def check_images_alone(model: nn.Module, theta: Tensor, images: Tensor) -> None:
    """Makes sure that a network's logits of an image do not depend on the others of the batch.

    Args:
        model: The network, in the mode that it is used in.
        theta: Its parameters. ``[P]``.
        images: Images as it gets them, at least one. ``[n, C, H, W]``.

    Raises:
        ValueError: They do, by a batch norm in training mode for example.
    """
    four = torch.arange(4, device=images.device) % len(images)
    # Noise tells the images apart where they are alike.
    noise = torch.randn((4, *images.shape[1:]), generator=torch.Generator().manual_seed(0))
    some = images.detach()[four] + noise.to(images)
    with torch.no_grad():
        together = call_flat(model, theta.detach(), some)
        apart = torch.cat([call_flat(model, theta.detach(), part) for part in some.split(2)])
    if not (together - apart).abs().max() <= _ROUNDING * together.abs().max():
        norms = [
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
        ]
        reason = f", for {norms[0]!r} is a batch norm" if norms else ""
        raise ValueError(
            "trajmatch::unroll: expected micro_batch to be None for a network whose logits of an "
            f"image depend on the others of its batch, which {type(model).__name__} does{reason}"
        )
