"""Logits by the fused operators are those of the modules."""

import itertools

import pytest
import torch
from torch import nn

from trajmatch import inference, networks
from trajmatch.block import ACTIVATIONS, IMAGE_NORMS, POOLINGS
from trajmatch.inference import logits
from trajmatch.random import generator


@pytest.mark.parametrize(
    ("norm", "activation", "pooling"), [*itertools.product(IMAGE_NORMS, ACTIVATIONS, POOLINGS)]
)
def test_every_convnet(norm: str, activation: str, pooling: str, device: torch.device) -> None:
    model = networks.ConvNet(
        3, 5, 10, width=8, depth=2, norm=norm, activation=activation, pooling=pooling
    )
    networks.initialise(model, generator(0, "network"))
    with torch.no_grad():
        for parameter in model.parameters():  # scale and shift of a fresh norm are 1 and 0
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator(1)))
    model = model.to(device, torch.float64)
    images = torch.randn(4, 3, 10, 10, dtype=torch.float64, generator=generator(2)).to(device)
    images = images.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        torch.testing.assert_close(logits(model, images), model(images), rtol=1e-10, atol=1e-12)


def test_a_convnet_does_not_run_module_by_module(monkeypatch) -> None:
    calls = []
    fused = inference.ops.norm_act_pool

    def counted(*args, **kwargs):
        calls.append(1)
        return fused(*args, **kwargs)

    monkeypatch.setattr(inference.ops, "norm_act_pool", counted)
    logits(networks.ConvNet(1, 3, 8, width=4, depth=2), torch.randn(2, 1, 8, 8))
    assert len(calls) == 2


def test_other_modules_are_called() -> None:
    class Half(networks.ConvNet):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(0.5 * images)

    images = torch.randn(2, 1, 8, 8, generator=generator(0))
    for model in (Half(1, 3, 8, width=4, depth=1), nn.Sequential(nn.Flatten(), nn.Linear(64, 3))):
        assert torch.equal(logits(model, images), model(images))
