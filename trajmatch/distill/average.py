"""FTD's moving average of the synthetic images."""

from __future__ import annotations

from torch import Tensor


def moving_average(average: Tensor, images: Tensor, decay: float) -> Tensor:
    """``beta average + (1 - beta) images``, after every update of the images (FTD).

    It begins at the first images and has no correction of that bias: after ``k`` updates they still
    have the weight ``beta^k``.

    Args:
        average: The average up to now. ``[n, C, H, W]``.
        images: The images after the update. ``[n, C, H, W]``.
        decay: ``beta``, from 0 to below 1.

    Returns:
        The new average. ``[n, C, H, W]``.
    """
    return decay * average + (1.0 - decay) * images
