"""The perturbation of a student's start."""

import pytest
import torch

from trajmatch import networks
from trajmatch.distill.objectives.start import perturbed
from trajmatch.networks.flat import split_flat
from trajmatch.random import generator


def test_convolutions_move_by_a_product_with_noise_of_length_one() -> None:
    model = networks.ConvNet(3, 4, image_size=8, width=8, depth=2)
    theta = networks.flat_parameters(networks.initialise(model, generator(0))).double()
    before = theta.clone()
    moved = perturbed(model, theta, 0.7, generator(1))
    assert torch.equal(theta, before)
    draw = generator(1)
    for name, weight in split_flat(model, before).items():
        after = split_flat(model, moved)[name]
        if weight.dim() != 4:
            assert torch.equal(after, weight)
            continue
        noise = torch.randn(weight.shape, generator=draw).double()
        expected = weight * (1 + 0.7 * noise / noise.square().sum().sqrt())
        torch.testing.assert_close(after, expected, rtol=1e-6, atol=0)
        relative = ((after - weight) / weight).square().mean().sqrt()
        assert relative.item() == pytest.approx(0.7 / weight.numel() ** 0.5, rel=1e-5)


def test_a_strength_of_zero_changes_nothing() -> None:
    model = networks.ConvNet(1, 2, image_size=8, width=4, depth=1)
    theta = networks.flat_parameters(model)
    assert torch.equal(perturbed(model, theta, 0.0, generator(0)), theta)


def test_draws_decide() -> None:
    model = networks.ConvNet(1, 2, image_size=8, width=4, depth=1)
    theta = networks.flat_parameters(networks.initialise(model, generator(0)))
    one, same, other = (perturbed(model, theta, 1.0, generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
