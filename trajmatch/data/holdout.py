"""Setting a part of the training set aside, class by class."""

from __future__ import annotations

import torch
from torch import Tensor

from trajmatch.errors import UserError
from trajmatch.random import generator


def split_holdout(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Draws the same fraction of every class at random.

    Each class has a random stream of its own, so what is drawn from one does not depend on the
    others.

    Args:
        labels: ``[N]``, int64, from 0 to the number of classes less one.
        fraction: Part of each class to draw, from 0 to below 1, rounded to whole images.
        seed: Chooses the draw.

    Returns:
        ``(kept, held_out)``: indices into ``labels``, int64, each in ascending order.

    Raises:
        UserError: The fraction is out of range, or a class is too small to have an image on both
            sides.
    """
    if not 0 <= fraction < 1:
        raise UserError(
            f"the fraction to hold out should be at least 0 and less than 1, but is {fraction}"
        )
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(int(labels.max()) + 1) if fraction else ():
        members = torch.nonzero(labels == label).flatten()
        count = round(fraction * len(members))
        if not 0 < count < len(members):
            raise UserError(
                f"--holdout {fraction:g} would put {count} of the {len(members)} images of class "
                f"{label} aside; each class needs an image on both sides: choose another fraction, "
                "or add images"
            )
        order = torch.randperm(len(members), generator=generator(seed, "holdout", label))
        held_out[members[order[:count]]] = True
    return torch.nonzero(~held_out).flatten(), torch.nonzero(held_out).flatten()
