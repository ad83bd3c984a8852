"""Images made from a few DCT coefficients (FreD, NeurIPS 2023)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from trajmatch.errors import UserError
from trajmatch.images.parametrisation import Tensors, WithSettings, joined, paid_for
from trajmatch.schema import PositiveInt


@dataclass(frozen=True)
class Frequency(WithSettings):
    """Images with ``coefficients`` learned DCT coefficients per channel; all others are 0.

    The DCT is orthonormal. The positions of the learned coefficients are constant, and the same for
    all images and channels of a class: those at which the coefficients, averaged over channels,
    vary most among the class's initial images (for a single image: are largest).
    """

    coefficients: PositiveInt = 64

    def images_per_class(self, ipc: int, shape: torch.Size) -> int:
        """Return the number of images whose coefficients fit the budget."""
        channels, pixels = shape[0], shape[1:].numel()
        if self.coefficients > pixels:
            raise UserError(
                f"--images frequency:coefficients={self.coefficients} exceeds the {pixels} pixels "
                f"of an image of {shape[1]} x {shape[2]}"
            )
        spec = f"frequency:coefficients={self.coefficients}"
        return paid_for(ipc, spec, channels * self.coefficients, shape)

    def initial(self, images: Tensor, classes: int) -> Tensors:
        """Return coefficients and positions."""
        of_class = _spectrum(images).unflatten(0, (classes, -1))
        grey = of_class.mean(2)
        # Variance over the images of a class. A single image has none, so take its energy.
        strength = grey.var(1) if grey.shape[1] > 1 else grey[:, 0].square()
        positions = strength.topk(self.coefficients, dim=1).indices.sort(dim=1).values
        return {"coefficients": _at(of_class, positions), "positions": positions}

    def extended(self, parameters: Tensors, images: Tensor, classes: int) -> Tensors:
        """Return coefficients of old and new images, at the old positions."""
        first, positions = parameters["coefficients"], parameters["positions"]
        more = _at(_spectrum(images).unflatten(0, (classes, -1)), positions.to(images.device))
        return {"coefficients": joined(first, more.to(first), classes), "positions": positions}

    def render(self, parameters: Tensors, shape: torch.Size) -> Tensor:
        """Return the inverse DCT of the learned coefficients; all others are 0."""
        kept, positions = parameters["coefficients"], parameters["positions"].long()
        of_class = kept.unflatten(0, (len(positions), -1))
        # The same positions for all images and channels of a class.
        rows = positions[:, None, None].expand_as(of_class)
        spectrum = of_class.new_zeros(*of_class.shape[:3], shape[1:].numel())
        image = spectrum.scatter(3, rows, of_class).flatten(0, 1).unflatten(2, shape[1:])
        # The matrices are orthonormal, so each transpose is the inverse.
        return cosines(shape[1], kept).T @ image @ cosines(shape[2], kept)

    def stored(self, parameters: Tensors) -> Tensors:
        """Return the parameters, with positions as int16 if they fit, else int32."""
        positions = parameters["positions"]
        dtype = torch.int16 if positions.max() < 2**15 else torch.int32
        return {**parameters, "positions": positions.to(dtype)}

    def restored(self, stored: Tensors, shape: torch.Size) -> Tensors:
        """Return the parameters, with positions as int64."""
        return {**stored, "positions": stored["positions"].long()}


def _spectrum(images: Tensor) -> Tensor:
    """Return all DCT coefficients. ``[n, C, H * W]``."""
    height, width = images.shape[2:]
    return (cosines(height, images) @ images @ cosines(width, images).T).flatten(2)


def _at(of_class: Tensor, positions: Tensor) -> Tensor:
    """Return each image's coefficients at its class's positions. ``[n, C, coefficients]``."""
    rows = positions[:, None, None].expand(*of_class.shape[:3], -1)
    return of_class.gather(3, rows).flatten(0, 1)


def cosines(size: int, like: Tensor) -> Tensor:
    """Return the orthonormal DCT-II matrix ``D [size, size]``; ``D x`` is the DCT of ``x``."""
    index = torch.arange(size, dtype=torch.float64, device=like.device)
    # D_kj = sqrt(2 / size) cos(pi / size (j + 1/2) k), and row 0 is smaller by sqrt(2).
    matrix = torch.cos(math.pi / size * (index + 0.5) * index[:, None]) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix.to(like.dtype)
