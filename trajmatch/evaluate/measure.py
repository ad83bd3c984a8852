"""Accuracy of a trained network on labelled images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from trajmatch.evaluate.forward import logits

# Images at a time. On a CPU few, so that activations stay in cache and below the size from which
# the C library returns memory to the kernel after each use; on a GPU enough to keep it busy.
_BATCH_CPU = 32
_BATCH_GPU = 512


def accuracy(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    normalise: Callable[[Tensor], Tensor] | None = None,
) -> float:
    """Share of images whose largest logit is that of their class, in percent.

    An image with a logit that is not finite counts as wrong: where a network diverged, ``argmax``
    would name class 0 and score chance. The model is put into evaluation mode and, where it has
    convolutions, into channels-last layout.

    Args:
        model: Network with logits ``[B, K]``.
        images: ``[N, C, H, W]``, as the network sees them, or as ``normalise`` takes them.
        labels: Class indices ``[N]``, int64.
        normalise: Applied to every batch on the model's device; without it images are used as they
            are.

    Returns:
        A number from 0 to 100.

    Raises:
        ValueError: Images and labels are empty or differ in number.
    """
    if len(images) != len(labels) or len(images) == 0:
        raise ValueError(
            "accuracy: expected as many labels as images, and at least one, but got "
            f"{len(images)} images and {len(labels)} labels"
        )
    device = next(model.parameters()).device
    size = _BATCH_CPU if device.type == "cpu" else _BATCH_GPU
    model.eval()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    correct = torch.zeros((), dtype=torch.int64, device=device)  # read once, for reading waits
    with torch.inference_mode():
        for batch, target in zip(torch.split(images, size), torch.split(labels, size), strict=True):
            batch = batch.to(device)
            if normalise is not None:
                batch = normalise(batch)
            found = logits(model, batch.contiguous(memory_format=torch.channels_last))
            right = found.argmax(dim=1) == target.to(device)
            correct += (right & found.isfinite().all(dim=1)).sum()
    return 100.0 * int(correct) / len(labels)
