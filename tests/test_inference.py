"""The engine and the modules compute the same logits."""

import itertools

import pytest
import torch
from torch import nn

from trajmatch import networks
from trajmatch.block import ACTIVATIONS, IMAGE_NORMS, POOLINGS
from trajmatch.inference import forward_of
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
    with torch.inference_mode():
        found = forward_of(model)(images)
        torch.testing.assert_close(found, model(images), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("text", "size"),
    [("vgg11:width=4", 32), ("resnet18:layer,width=4", 16), ("lenet", 20), ("mlp:width=5", 6)],
)
def test_other_networks_of_the_engine(text: str, size: int, device: torch.device) -> None:
    model = networks.build(networks.specify(text, 3, 5, size)).to(device, torch.float64)
    images = torch.randn(4, 3, size, size, dtype=torch.float64, generator=generator(2)).to(device)
    with torch.inference_mode():
        found = forward_of(model)(images)
        torch.testing.assert_close(found, model(images), rtol=1e-10, atol=1e-12)


def test_float32_is_as_accurate_as_the_modules(device: torch.device) -> None:
    model = networks.ConvNet(3, 10, 32, width=32).to(device)
    images = torch.randn(20, 3, 32, 32, generator=generator(2)).to(device)
    with torch.inference_mode():
        found, modules = forward_of(model)(images), model(images)
        exact = model.double()(images.double())
    assert (found - exact).norm() < 3 * (modules - exact).norm() + 1e-6 * exact.norm()


def test_the_engine_computes_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = networks.ConvNet(1, 3, 8, width=4, depth=2)
    monkeypatch.setattr(networks.ConvNet, "forward", None)
    assert forward_of(model)(torch.randn(2, 1, 8, 8)).shape == (2, 3)
    model.eval()
    batch = networks.ConvNet(1, 3, 8, width=4, depth=2, norm="batch").eval()
    assert forward_of(batch) is batch  # running statistics


def test_other_modules_are_called() -> None:
    class Half(networks.ConvNet):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(0.5 * images)

    for model in (Half(1, 3, 8, width=4, depth=1), nn.Sequential(nn.Flatten(), nn.Linear(64, 3))):
        assert forward_of(model) is model
