"""Test that a network treats each image of a batch alone, so that a batch can be divided."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trajmatch.networks.flat import call_flat

#: How far logits of the same images in two batches may differ, relative to the largest: they do by
#: rounding (1e-3 in TF32); batch norm changes them by about as much as they are.
_INDEPENDENT = 1e-2


def treats_images_alone(model: nn.Module, theta: Tensor, images: Tensor) -> bool:
    """Return True if the logits of an image do not depend on the others of its batch.

    Args:
        model: The network, in the mode that it is in.
        theta: Its parameters. ``[P]``.
        images: Some images; the first is looked at. ``[n, C, H, W]``.

    Returns:
        False for a batch norm in training mode, for example.
    """
    with torch.no_grad():
        # A batch norm takes another mean and another variance from these two together.
        pairs = images[[0, 0]], 3 * images[[0, 0]] + 1
        together = call_flat(model, theta, torch.cat(pairs))
        apart = torch.cat([call_flat(model, theta, pair) for pair in pairs])
    return bool((together - apart).abs().max() <= _INDEPENDENT * apart.abs().max())
