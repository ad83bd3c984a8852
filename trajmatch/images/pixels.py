"""Parametrisations that store pixels: plain (MTT), mirrored or upsampled."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from trajmatch.errors import UserError
from trajmatch.images.parametrisation import Parametrisation, Tensors, WithSettings
from trajmatch.schema import PositiveInt


@dataclass(frozen=True)
class Pixels(Parametrisation):
    """Identity parametrisation."""

    def initial(self, images: Tensor, classes: int) -> Tensors:
        """Return the images themselves as parameters."""
        return {"images": images}

    def render(self, parameters: Tensors, shape: torch.Size) -> Tensor:
        """Return the images."""
        return parameters["images"]


@dataclass(frozen=True)
class Flip(Parametrisation):
    """Set of images and their mirror images: twice as many for the same storage (FYI, ECCV 2024).

    FYI itself adds the mirror images to every student batch. Both give the same result if each
    student step uses all images.
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


@dataclass(frozen=True)
class Upsample(WithSettings):
    """Small images, upsampled: ``factor^2`` fit the space of one (IDC, Kim et al., ICML 2022).

    ``factor`` is per side; ``mode`` is that of ``torch.nn.functional.interpolate``.
    """

    factor: PositiveInt = 2
    mode: Literal["bilinear", "bicubic", "nearest"] = "bilinear"

    def images_per_class(self, ipc: int, shape: torch.Size) -> int:
        """Return ``ipc * factor^2``; UserError if ``factor`` does not divide the image's sides."""
        if any(side % self.factor for side in shape[1:]):
            raise UserError(
                f"--images upsample:factor={self.factor} needs images whose sides are multiples of "
                f"{self.factor}, but they are {shape[1]} x {shape[2]}"
            )
        return ipc * self.factor**2

    def initial(self, images: Tensor, classes: int) -> Tensors:
        """Return the images, each ``factor x factor`` block averaged."""
        return {"small_images": interpolate(images, scale_factor=1 / self.factor, mode="area")}

    def render(self, parameters: Tensors, shape: torch.Size) -> Tensor:
        """Return the enlarged images."""
        # PyTorch allows align_corners only with the interpolating modes.
        corners = None if self.mode == "nearest" else False
        small = parameters["small_images"]
        return interpolate(small, scale_factor=self.factor, mode=self.mode, align_corners=corners)
