"""DATM's soft labels: the logits of the experts that are right about an image."""

from __future__ import annotations

import torch
from torch import Tensor

from trajmatch.experts.final import FinalExperts


def soft_labels(images: Tensor, classes: Tensor, experts: FinalExperts) -> Tensor:
    """Return the mean logits of those experts that classify an image correctly (DATM).

    An image that no expert is right about gets the mean over all of them.

    Args:
        images: As the experts see them (normalised). ``[n, C, H, W]``, float32.
        classes: The class of each image. ``[n]``, int64.
        experts: Who is asked.

    Returns:
        Target logits ``[n, K]``, float32, on the CPU. Their softmax are the labels.
    """
    classes = classes.cpu()
    of_right = of_all = torch.zeros(())
    times_right = torch.zeros(len(classes))
    for expert in range(experts.count):
        logits = experts.logits(expert, images)
        right = (logits.argmax(dim=1) == classes).float()
        of_right = of_right + right[:, None] * logits
        of_all = of_all + logits
        times_right += right
    mean_right = of_right / times_right.clamp(min=1)[:, None]
    return torch.where(times_right[:, None] > 0, mean_right, of_all / experts.count)
