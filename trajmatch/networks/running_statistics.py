"""Running statistics of batch norm, from the batch statistics that the engine returns."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def update_running_statistics(model: nn.Module, statistics: Tensor) -> None:
    """Update a model's running statistics with a batch, as its layers do in training mode.

    The rows of ``statistics [3, C]`` are mean, ``1 / sqrt(variance + eps)`` and number of values,
    for the channels of all batch norms in the order of ``modules()``.
    """
    layers = [each for each in model.modules() if isinstance(each, nn.BatchNorm2d)]
    parts = statistics.split([each.num_features for each in layers], dim=1)
    with torch.no_grad():
        for layer, (mean, rstd, count) in zip(layers, parts, strict=True):
            if layer.running_mean is None:
                continue
            assert layer.running_var is not None and layer.num_batches_tracked is not None
            layer.num_batches_tracked += 1
            # Without a momentum, PyTorch averages over all batches.
            weight: Tensor | float = (
                1.0 / layer.num_batches_tracked if layer.momentum is None else layer.momentum
            )
            # PyTorch's running variance is unbiased, the engine's variance is not.
            variance = (rstd**-2 - layer.eps) * count / (count - 1)
            for kept, found in ((layer.running_mean, mean), (layer.running_var, variance)):
                kept.copy_((1 - weight) * kept + weight * found)
