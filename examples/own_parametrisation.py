"""A parametrisation of your own: learn something other than pixels, and make images from it.

    python examples/own_parametrisation.py

`LowRank` learns two thin matrices for each channel of an image, and multiplies them. They have
fewer values than the image, so more images fit into the same storage. With this file in the current
folder, a command accepts the name of the class, followed by a colon and the settings:

    trajmatch distill --experts STORE --out FILE --images own_parametrisation:LowRank:rank=4

The example trains experts, distils to pixels and to matrices, and trains three networks on each of
the two sets. It prints:

    pixels: 10 images from 7840 values, 70.1 +- 1.3 % of the test images
    own_parametrisation:LowRank: 30 images from 6720 values, 75.0 +- 0.4 % of the test images
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from trajmatch.distill import DistillConfig, distill
from trajmatch.evaluate import EvalConfig, evaluate_artifact
from trajmatch.experts import ExpertConfig, train_experts
from trajmatch.images.parametrisation import Parametrisation, paid_for


@dataclass(frozen=True)
class LowRank(Parametrisation):
    """Images [n, C, H, W] whose channels are matrices of at most a given rank."""

    rank: int = 4
    lr: ClassVar[float] = 20.0  # default of --lr-img, which is 100 for pixels

    def images_per_class(self, ipc: int, shape: torch.Size) -> int:
        """Return the number of images [C, H, W] that fit into the storage of `ipc` whole images."""
        channels, height, width = shape
        values = channels * self.rank * (height + width)
        return paid_for(ipc, f"LowRank:rank={self.rank}", values, shape)  # raises an error if 0

    def initial(self, images: Tensor, classes: int) -> dict[str, Tensor]:
        """Return the tensors to learn, computed from the initial images [n, C, H, W]."""
        left, singular, right = torch.linalg.svd(images, full_matrices=False)
        roots = singular[..., : self.rank].sqrt()
        return {
            "left": left[..., : self.rank] * roots[..., None, :],
            "right": roots[..., :, None] * right[..., : self.rank, :],
        }

    def render(self, parameters: Mapping[str, Tensor], shape: torch.Size) -> Tensor:
        """Return the images [n, C, H, W]; must be differentiable."""
        return parameters["left"] @ parameters["right"]


def main(argv: Sequence[str] | None = None) -> None:
    """Compare distillation to matrices with distillation to pixels."""
    parser = argparse.ArgumentParser(description="A parametrisation of your own.")
    parser.add_argument("--data", help="data set (default: the shipped images)")
    for name, default in (
        *(("--experts", 3), ("--epochs", 6), ("--width", 16)),
        *(("--iterations", 200), ("--test-epochs", 1000)),
    ):
        parser.add_argument(name, type=int, default=default, help=f"default: {default}")
    asked = parser.parse_args(argv)

    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder, "experts")
        experts = {"num_experts": asked.experts, "epochs": asked.epochs, "width": asked.width}
        train_experts(ExpertConfig(out=store, data=asked.data, **experts))
        for images in ("pixels", "own_parametrisation:LowRank"):
            file = Path(folder, f"{images}.safetensors")
            settings = {"iterations": asked.iterations, "lr_init": 0.02}
            found = distill(DistillConfig(experts=store, out=file, images=images, **settings))
            test = EvalConfig(file=file, seeds=3, epochs=asked.test_epochs, random_baseline=False)
            score = evaluate_artifact(test)["distilled"]
            print(
                f"{images}: {len(found.images)} images from {found.stored_values} values,",
                f"{score['mean']:.1f} +- {score['std']:.1f} % of the test images",
            )


if __name__ == "__main__":
    main()
