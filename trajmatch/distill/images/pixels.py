"""Images as they are: every pixel is learned (MTT)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Pixels:
    """The identity; see :class:`trajmatch.distill.images.Parametrisation`."""

    def initial(self, images: Tensor) -> Mapping[str, Tensor]:
        """Return the images themselves."""
        return {"images": images}

    def render(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return the images themselves."""
        return parameters["images"]
