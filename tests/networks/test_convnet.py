"""The ConvNet, flat parameters, and initialisation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from trajmatch import networks
from trajmatch.networks import ConvNet


def test_28_pixels_become_32() -> None:
    # METHODS of MTT: the first convolution pads by 3; three poolings leave 4 x 4 features.
    model = ConvNet(1, 10, 28, width=8)
    assert model.classifier.in_features == 8 * 16
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_flat_parameters_follow_the_order_of_parameters() -> None:
    model = ConvNet(1, 2, 4, width=2, depth=1)
    theta = networks.flat_parameters(model)
    assert torch.equal(theta[:18], model.features[0].weight.flatten())
    assert torch.equal(theta[-2:], model.classifier.bias)
    logits = networks.call_flat(model, theta * 0, torch.ones(1, 1, 4, 4))
    assert not logits.any()
    assert model.classifier.weight.any()


def test_a_vector_is_split_by_name() -> None:
    model = ConvNet(1, 2, 4, width=2, depth=1)
    theta = networks.flat_parameters(model).requires_grad_()
    parts = networks.split(theta, networks.parameter_shapes(model))
    named = dict(model.named_parameters())
    assert list(parts) == list(named)
    assert all(torch.equal(parts[name], named[name]) for name in named)
    (grad,) = torch.autograd.grad(parts["classifier.bias"].sum(), theta)
    assert torch.equal(grad.nonzero().flatten(), torch.arange(len(theta) - 2, len(theta)))


def test_initialise_draws_pytorchs_default_from_the_generator() -> None:
    model = ConvNet(3, 10, 16, width=64, depth=2)
    first = networks.flat_parameters(networks.initialise(model, torch.Generator().manual_seed(1)))
    again = networks.flat_parameters(networks.initialise(model, torch.Generator().manual_seed(1)))
    other = networks.flat_parameters(networks.initialise(model, torch.Generator().manual_seed(2)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    bound = 1 / math.sqrt(64 * 9)
    weight = model.features[4].weight.detach()
    assert weight.abs().max() <= bound
    # Uniform in +-bound: standard deviation bound / sqrt(3), and 36,864 values to see it.
    assert abs(weight.std().item() / (bound / math.sqrt(3)) - 1) < 0.02
    assert torch.equal(model.features[1].weight, torch.ones(64))


def test_initialise_refuses_a_layer_it_does_not_know() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(()))

    with pytest.raises(TypeError, match=r"reset_parameters\(\), but got Scale"):
        networks.initialise(nn.Sequential(Scale()), torch.Generator())


def test_initialise_calls_the_reset_of_other_layers_with_a_seed() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Embedding(5, 3))
    model[0].running_mean.fill_(7)
    before = torch.get_rng_state()
    drawn = [
        networks.initialise(model, torch.Generator().manual_seed(seed))[1].weight.detach().clone()
        for seed in (1, 1, 2)
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not model[0].running_mean.any()
    assert torch.equal(before, torch.get_rng_state())


def test_errors_say_what_came() -> None:
    with pytest.raises(ValueError, match=r"expected image_size to be at least 8 .*, but got 7"):
        ConvNet(3, 10, 7)
    with pytest.raises(ValueError, match=r"expected norm to be one of .*, but got 'bath'"):
        ConvNet(3, 10, 32, norm="bath")
    with pytest.raises(ValueError, match=r"expected width to be a multiple of 4 .*, but got 6"):
        ConvNet(3, 10, 32, width=6, norm="group")
    with pytest.raises(ValueError, match="expected depth to be at least 1, but got 0"):
        ConvNet(3, 10, 32, depth=0)
    with pytest.raises(ValueError, match="expected depth to be at most 100, but got 1000000000"):
        ConvNet(3, 10, 32, depth=10**9, pooling="none")
    with pytest.raises(ValueError, match="expected the network's name to be one of ConvNet"):
        networks.build({"name": "Perceptron"})
    with pytest.raises(ValueError, match="expected the network's name to be one of ConvNet"):
        networks.build({"name": {}})
    with pytest.raises(ValueError, match="expected the arguments of ConvNet"):
        networks.build({"name": "ConvNet", "wdith": 3})
    with pytest.raises(
        ValueError, match=r"expected the parameters of Linear to have shape \[20\], but got \[3\]"
    ):
        networks.load_flat_parameters(nn.Linear(9, 2), torch.zeros(3))
