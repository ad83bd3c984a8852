"""The moving average of the images."""

import pytest
import torch

from trajmatch.distill.average import moving_average


def test_the_first_images_keep_the_weight_beta_to_the_k() -> None:
    first = torch.tensor([8.0, -3.0], dtype=torch.float64)
    updates = [torch.tensor([1.0, k], dtype=torch.float64) for k in range(1, 6)]
    average, beta = first, 0.9
    for images in updates:
        average = moving_average(average, images, beta)
    weights = [(1 - beta) * beta ** (5 - k) for k in range(1, 6)]
    expected = beta**5 * first + sum(
        weight * images for weight, images in zip(weights, updates, strict=True)
    )
    torch.testing.assert_close(average, expected, rtol=1e-12, atol=0)
    # not divided by 1 - beta^k: of images that are 0 the first ones' share remains
    assert moving_average(first, 0 * first, 0.9999)[0].item() == pytest.approx(8 * 0.9999)


def test_without_decay_it_is_the_images() -> None:
    images = torch.tensor([1.5])
    assert moving_average(torch.tensor([9.0]), images, 0.0).item() == 1.5
