"""Plain images: every pixel is learned (MTT)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from trajmatch.images.parametrisation import Parametrisation


@dataclass(frozen=True)
class Pixels(Parametrisation):
    """Identity parametrisation."""

    def initial(self, images: Tensor, classes: int) -> Mapping[str, Tensor]:
        """Return the images."""
        return {"images": images}

    def render(self, parameters: Mapping[str, Tensor], shape: torch.Size) -> Tensor:
        """Return the images."""
        return parameters["images"]
