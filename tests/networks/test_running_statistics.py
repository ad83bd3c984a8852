"""Running statistics of batch norm, against a layer of PyTorch in training mode."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from trajmatch.ops.student import update_running_statistics


@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, None])
def test_they_are_those_of_torch(momentum: float | None) -> None:
    torch.manual_seed(0)
    layer = nn.BatchNorm2d(3, momentum=momentum, dtype=torch.float64)
    ours = copy.deepcopy(layer)
    for _ in range(3):
        images = 2 + 3 * torch.randn(4, 3, 2, 2, dtype=torch.float64)
        layer(images)
        variance, mean = torch.var_mean(images, dim=(0, 2, 3), correction=0)
        count = torch.full((3,), 16.0, dtype=torch.float64)
        update_running_statistics(ours, torch.stack([mean, (variance + ours.eps).rsqrt(), count]))
    assert ours.num_batches_tracked == 3
    torch.testing.assert_close(ours.running_mean, layer.running_mean)
    torch.testing.assert_close(ours.running_var, layer.running_var)
