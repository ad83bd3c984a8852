"""Whether all variants of a measurement computed the same thing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from trajmatch.bench.variants import OuterGradient

#: Largest relative differences of two float32 variants, each of a whole vector. One ReLU input
#: within rounding of zero may fall on the other side in one of two correct implementations. That
#: changes the images' gradient by up to 5e-3, mostly that of its own image: hence the median over
#: images as well, which such an image moves only through the steps after it: the two memory layouts
#: of eager PyTorch were seen 3e-3 apart by it, and one of them 6e-3 from float64. With a GPU's TF32
#: products there are many.
TOLERANCE = {
    "cpu": {"loss": 1e-4, "images": 2e-2, "images_median": 1e-2, "lr": 1e-2},
    "cuda": {"loss": 1e-2, "images": 2e-1, "images_median": 1e-1, "lr": 1e-1},
}


def agreement(results: Mapping[str, OuterGradient], reference: str, device: str) -> dict[str, Any]:
    """Compares the results of all variants with those of one of them.

    Args:
        results: Loss and gradients by variant.
        reference: The variant that the others are compared with.
        device: ``"cpu"`` or ``"cuda"``, which decides the tolerance.

    Returns:
        ``reference``; ``tolerance``; ``differences`` of each other variant, by quantity; and
        ``agree``, whether none exceeds its tolerance.
    """
    tolerance = TOLERANCE[device]
    differences = {
        name: difference(result, results[reference])
        for name, result in results.items()
        if name != reference
    }
    return {
        "reference": reference,
        "tolerance": tolerance,
        "differences": differences,
        "agree": all(
            found[quantity] <= allowed  # a NaN is not
            for found in differences.values()
            for quantity, allowed in tolerance.items()
        ),
    }


def difference(result: OuterGradient, reference: OuterGradient) -> dict[str, float]:
    """Relative differences of loss and gradients, ``images_median`` that of the median image."""
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
    """``|result - reference| / |reference|``, as vectors in float64."""
    wanted = reference.double()
    return float((result.double() - wanted).norm() / wanted.norm())
