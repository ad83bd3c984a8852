"""Small images, upsampled (IDC, Kim et al., ICML 2022): ``factor^2`` fit the space of one image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from trajmatch.errors import UserError
from trajmatch.images.parametrisation import Tensors, WithSettings
from trajmatch.schema import PositiveInt


@dataclass(frozen=True)
class Upsample(WithSettings):
    """Upsampling by ``factor`` per side, in a ``mode`` of ``torch.nn.functional.interpolate``."""

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
