"""Student batches: the synthetic images that each student step sees."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def student_batches(
    count: int, batch_size: int | None, steps: int, generator: torch.Generator
) -> list[Tensor]:
    """Draw the batches of one match: a permutation of the images, cut up, again and again.

    Where the batch size does not divide the number of images, the first batch of each permutation
    is the short one, as in the programs of MTT, FTD, AST and DATM.

    Args:
        count: Synthetic images in all.
        batch_size: Images in one batch; ``None``, or more than there are, takes all.
        steps: Student steps ``N``.
        generator: Source of the permutations, on the CPU.

    Returns:
        ``steps`` index vectors ``[B]``, int64.
    """
    size = min(batch_size or count, count)
    whole, short = divmod(count, size)
    sizes = [short] * (short > 0) + [size] * whole
    batches: list[Tensor] = []
    while len(batches) < steps:
        batches.extend(torch.randperm(count, generator=generator).split(sizes))
    return batches[:steps]


def moved(batches: Sequence[Tensor], device: torch.device) -> Sequence[Tensor]:
    """Return index vectors on a device; moved at once, since every move makes the host wait."""
    return torch.cat([*batches]).to(device).split([*map(len, batches)])
