"""Comparison of what all variants of a measurement computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bench.variants import OuterGradient

#: Largest relative differences, each of a whole vector, ``images_median`` of the median image.
#:
#: One ReLU input within rounding of zero may fall on the other side in one of two correct float32
#: implementations. It changes the gradient of its own image by up to 5e-3, and through the steps
#: that follow those of all others: after ten steps two memory layouts of eager PyTorch were seen
#: 3e-3 apart, and each of them 6e-3 from float64. Over all steps, therefore, only gross differences
#: can be told. In the first step it moves no other image, and the median image shows rounding alone
#: (1e-6, at most 3e-5 seen in any variant). With a GPU's TF32 products there are many such inputs.
FIRST_STEP = {
    "cpu": {"loss": 1e-5, "images": 1e-2, "images_median": 5e-5, "lr": 1e-3},
    "cuda": {"loss": 1e-2, "images": 2e-1, "images_median": 1e-1, "lr": 1e-1},
}
ALL_STEPS = {
    "cpu": {"loss": 1e-4, "images": 2e-2, "lr": 1e-2},
    "cuda": {"loss": 1e-2, "images": 2e-1, "lr": 1e-1},
}


def agreement(
    results: Mapping[str, OuterGradient], reference: str, tolerance: Mapping[str, float]
) -> dict[str, Any]:
    """Compare the results of all variants with those of one of them.

    Args:
        results: Loss and gradients by variant.
        reference: The variant that the others are compared with.
        tolerance: Largest relative difference of each quantity.

    Returns:
        ``reference``; ``tolerance``; ``differences`` of each other variant, by quantity; and
        ``agree``, true if none exceeds its tolerance.
    """
    differences = {
        name: difference(result, results[reference])
        for name, result in results.items()
        if name != reference
    }
    return {
        "reference": reference,
        "tolerance": dict(tolerance),
        "differences": differences,
        "agree": all(
            found[quantity] <= allowed  # a NaN is not
            for found in differences.values()
            for quantity, allowed in tolerance.items()
        ),
    }


def difference(result: OuterGradient, reference: OuterGradient) -> dict[str, float]:
    """Return relative differences of loss and gradients, and of the median image."""
    per_image = [
        relative(ours, theirs) for ours, theirs in zip(result.images, reference.images, strict=True)
    ]
    return {
        "loss": relative(result.loss, reference.loss),
        "images": relative(result.images, reference.images),
        "images_median": float(torch.tensor(per_image).median()),
        "lr": relative(result.lr, reference.lr),
    }


def relative(result: Tensor, reference: Tensor) -> float:
    """Return ``|result - reference| / |reference|``, as vectors in float64."""
    wanted = reference.detach().double()
    return float((result.detach().double() - wanted).norm() / wanted.norm())
