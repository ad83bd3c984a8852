"""Which synthetic images each student step sees."""

from __future__ import annotations

import torch
from torch import Tensor


def student_batches(
    count: int, batch_size: int | None, steps: int, generator: torch.Generator
) -> list[Tensor]:
    """The batches of one match: a permutation of the images, cut up, again and again.

    Where the batch size does not divide the images, the last batch of each permutation is short
    (MTT, ``distill.py``).

    Args:
        count: Synthetic images in all.
        batch_size: Images in one batch; ``None``, or more than there are, takes all.
        steps: Student steps ``N``.
        generator: Where the permutations are drawn from, on the CPU.

    Returns:
        ``steps`` index vectors ``[B]``, int64.
    """
    batches: list[Tensor] = []
    while len(batches) < steps:
        order = torch.randperm(count, generator=generator)
        batches.extend(torch.split(order, batch_size or count))
    return batches[:steps]
