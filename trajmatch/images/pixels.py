"""Plain images: every pixel is learned (MTT)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trajmatch.images.parametrisation import Parametrisation, Tensors


@dataclass(frozen=True)
class Pixels(Parametrisation):
    """Identity parametrisation."""

    def initial(self, images: Tensor, classes: int) -> Tensors:
        """Return the images themselves as parameters."""
        return {"images": images}

    def render(self, parameters: Tensors, shape: torch.Size) -> Tensor:
        """Return the images."""
        return parameters["images"]
