"""Each image and its mirror image (FYI, ECCV 2024): twice as many images of the same values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from trajmatch.images.parametrisation import Parametrisation


@dataclass(frozen=True)
class Flip(Parametrisation):
    """Mirroring; see :class:`trajmatch.images.Parametrisation`.

    The paper mirrors every student batch; here the mirror images are images of the set, which is
    the same where a student step shows all images.
    """

    def images_per_class(self, ipc: int, shape: torch.Size) -> int:
        """Return twice the budget."""
        return 2 * ipc

    def initial(self, images: Tensor, classes: int) -> Mapping[str, Tensor]:
        """Return the first half of each class."""
        halves = images.unflatten(0, (classes, 2, -1))
        return {"images": halves[:, 0].flatten(0, 1)}

    def render(self, parameters: Mapping[str, Tensor], shape: torch.Size) -> Tensor:
        """Return each image and its mirror image, class by class."""
        images = parameters["images"]
        return torch.stack((images, images.flip(-1)), dim=1).flatten(0, 1)
