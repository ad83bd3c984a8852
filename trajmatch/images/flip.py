"""Images with their mirror images (FYI, ECCV 2024): twice as many for the same storage."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trajmatch.images.parametrisation import Parametrisation, Tensors


@dataclass(frozen=True)
class Flip(Parametrisation):
    """Set of images and their mirror images.

    FYI instead adds the mirror images to every student batch. Both give the same result if
    each student step uses all images.
    """

    def images_per_class(self, ipc: int, shape: torch.Size) -> int:
        """Return ``2 * ipc``, because the mirror images are not stored."""
        return 2 * ipc

    def initial(self, images: Tensor, classes: int) -> Tensors:
        """Return the first half of each class's images; mirror images replace the others."""
        # Rendering doubles every class again. [classes, 2, ipc, C, H, W]
        halves = images.unflatten(0, (classes, 2, -1))
        return {"images": halves[:, 0].flatten(0, 1)}

    def render(self, parameters: Tensors, shape: torch.Size) -> Tensor:
        """Return each image followed by its mirror image."""
        images = parameters["images"]
        return torch.stack((images, images.flip(-1)), dim=1).flatten(0, 1)
