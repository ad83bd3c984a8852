"""Images as they are: every pixel is learned (MTT)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from trajmatch.images.parametrisation import Parametrisation


@dataclass(frozen=True)
class Pixels(Parametrisation):
    """The identity; see :class:`trajmatch.images.Parametrisation`."""

    def initial(self, images: Tensor, classes: int) -> Mapping[str, Tensor]:
        """Return the images themselves."""
        return {"images": images}

    def render(self, parameters: Mapping[str, Tensor], shape: torch.Size) -> Tensor:
        """Return the images themselves."""
        return parameters["images"]
