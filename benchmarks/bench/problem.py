"""The outer iteration that every variant computes: one random instance for each size."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench.sizes import Size
from trajmatch import networks
from trajmatch.networks import ConvNet
from trajmatch.random import generator


@dataclass(frozen=True, eq=False)
class Problem:
    """Inputs of an outer iteration, on one device, in float32 unless made double.

    Attributes:
        size: Its size.
        model: The student's network; its own parameters are not used.
        start: Parameters that the student begins with. ``[P]``.
        target: Parameters that it should reach. ``[P]``.
        images: The synthetic images. ``[B, 3, H, W]``.
        labels: Their classes. ``[B]``, int64.
        lr: Step size. ``[]``.
        batches: Order of the images in each step. ``[N, B]``, int64.
    """

    size: Size
    model: ConvNet
    start: Tensor
    target: Tensor
    images: Tensor
    labels: Tensor
    lr: Tensor
    batches: Tensor

    def first(self, steps: int) -> Problem:
        """Return the same problem with only its first steps."""
        return replace(self, size=self.size.with_steps(steps), batches=self.batches[:steps])

    def double(self) -> Problem:
        """Return the same problem in float64."""
        return replace(
            self,
            model=copy.deepcopy(self.model).double(),
            start=self.start.double(),
            target=self.target.double(),
            images=self.images.double(),
            lr=self.lr.double(),
        )


def make_problem(size: Size, device: str | torch.device = "cpu") -> Problem:
    """Draw the problem of a size: the same in every process and on every device.

    Args:
        size: The size.
        device: Where it lives.

    Returns:
        The problem.
    """
    draws = generator(0, "bench", size.key)
    model = ConvNet(3, size.num_classes, size.image_size, width=size.width, depth=size.depth)
    networks.initialise(model, draws)
    start = networks.flat_parameters(model)
    images = torch.randn(size.batch, 3, size.image_size, size.image_size, generator=draws)
    orders = [torch.randperm(size.batch, generator=draws) for _ in range(size.steps)]
    return Problem(
        size=size,
        model=model.to(device),
        start=start.to(device),
        target=(start + 0.01 * torch.randn(start.shape, generator=draws)).to(device),
        images=images.to(device),
        labels=(torch.arange(size.batch) % size.num_classes).to(device),
        lr=torch.tensor(0.01, device=device),
        batches=torch.stack(orders).to(device),
    )
