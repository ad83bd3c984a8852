"""Running statistics of batch norm, from those that the engine finds of a batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def update_running_statistics(model: nn.Module, statistics: Tensor) -> None:
    """Count a batch in a model's running statistics, as its layers do in training mode.

    Args:
        model: Has batch norms, in the order of the engine's.
        statistics: Mean, ``1 / sqrt(variance + eps)`` and number of values for each channel of all
            of them. ``[3, C]``.
    """
    layers = [each for each in model.modules() if isinstance(each, nn.BatchNorm2d)]
    parts = statistics.split([each.num_features for each in layers], dim=1)
    with torch.no_grad():
        for layer, (mean, rstd, count) in zip(layers, parts, strict=True):
            if layer.running_mean is None:
                continue
            assert layer.running_var is not None and layer.num_batches_tracked is not None
            layer.num_batches_tracked += 1
            # Without a momentum, the mean over all batches.
            weight: Tensor | float = layer.momentum or 1.0 / layer.num_batches_tracked
            variance = (rstd**-2 - layer.eps) * count / (count - 1)
            for kept, found in ((layer.running_mean, mean), (layer.running_var, variance)):
                kept.copy_((1 - weight) * kept + weight * found)
