"""ZCA whitening: images whose pixels are uncorrelated and that still look like images.

With the mean ``m`` and the covariance ``U diag(S) U^T`` of the training images (pixels from 0 to 1,
flattened to ``D`` numbers, divided by the count less one), an image ``x`` becomes

    (x - m) W,    W = U diag(1 / sqrt(S + eps)) U^T,

as kornia's ``ZCAWhitening`` does, which the papers use with eps = 0.1. ``W`` is symmetric and
positive definite, and ``eps`` keeps its condition small (about 20 for CIFAR-10), so the inverse is
a solution with ``W`` and is not kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from trajmatch.data.preprocessing import Preprocessing, unit
from trajmatch.errors import UserError
from trajmatch.memory import check_memory, one_thread

EPS = 0.1

KIND = "zca"
_MEAN, _TRIANGLE = "zca_mean", "zca_triangle"

# Pixels less 128 are integers of at most 128, and float32 has every integer up to 2^24 = 1024 * 128
# * 128: products of that many images are summed without rounding, in any order.
_BLOCK = 1024
_MIDDLE = 128

# float64 matrices of D x D that live at once when the eigenvectors are found: the covariance, the
# eigenvectors, and two in LAPACK's workspace.
_MATRICES = 4


@dataclass(frozen=True, eq=False)
class ZCA(Preprocessing):
    """A whitening transform.

    Make one with :func:`fit` or :func:`from_parts`.

    Attributes:
        mean: Mean of the training images, pixels from 0 to 1. ``[C, S, S]``, float32.
        matrix: ``W``, symmetric. ``[D, D]``, float32, with ``D = C * S * S``.
        eps: Added to every eigenvalue of the covariance.
    """

    mean: Tensor
    matrix: Tensor
    eps: float = EPS

    def __repr__(self) -> str:
        """Say in one line what is whitened, without the matrix."""
        return f"<ZCA of images {list(self.mean.shape)}, eps {self.eps:g}>"

    def apply(self, images: Tensor) -> Tensor:
        """Turn pixels into network inputs; see :meth:`Preprocessing.apply`."""
        whitened = torch.empty(images.shape, dtype=torch.float32, device=images.device)
        for pixels, block in zip(images.split(_BLOCK), whitened.split(_BLOCK), strict=True):
            centred = unit(pixels).sub_(self.mean)
            block.copy_((centred.flatten(1) @ self.matrix).view(pixels.shape))
        return whitened

    def invert(self, images: Tensor) -> Tensor:
        """Turn network inputs into pixels; see :meth:`Preprocessing.invert`."""
        columns = images.flatten(1).to(torch.float64).T
        solved = torch.cholesky_solve(columns, self._factor).T.reshape(images.shape)
        return solved.add_(self.mean).to(images.dtype)

    def to(self, device: str | torch.device) -> ZCA:
        """Return the same on a device; the object itself where it is there already."""
        if self.mean.device == torch.device(device):
            return self
        return ZCA(self.mean.to(device), self.matrix.to(device), self.eps)

    def staged(self, images: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Whiten all images at once; see :meth:`Preprocessing.staged`."""
        return self.to(images.device).apply(images), lambda batch: batch

    def spec(self) -> dict[str, Any]:
        """Return ``kind`` and ``eps``; mean and matrix are among the :meth:`tensors`."""
        return spec(self.eps)

    def tensors(self) -> dict[str, Tensor]:
        """``zca_mean [C, S, S]`` and ``zca_triangle [D (D + 1) / 2]``, float32.

        The triangle has the rows of the matrix, each from the diagonal on.
        """
        triangle = self.matrix.masked_select(_upper(len(self.matrix)).to(self.matrix.device))
        return {_MEAN: self.mean, _TRIANGLE: triangle}

    @cached_property
    def _factor(self) -> Tensor:
        """Cholesky factor of the matrix, float64."""
        return torch.linalg.cholesky(self.matrix.to(torch.float64))


def spec(eps: float = EPS) -> dict[str, Any]:
    """Return what :meth:`ZCA.spec` gives, before anything is fitted."""
    return {"kind": KIND, "eps": eps}


def from_parts(spec: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> ZCA:
    """Return the transform from what was written of it.

    Args:
        spec: What :meth:`ZCA.spec` gave.
        tensors: What :meth:`ZCA.tensors` gave, perhaps with others.

    Returns:
        The transform.

    Raises:
        UserError: Something is missing or does not fit together.
    """
    described = isinstance(spec, Mapping) and spec.get("kind") == KIND
    eps = spec.get("eps") if described else None
    mean, triangle = (tensors.get(name, torch.empty(0)) for name in (_MEAN, _TRIANGLE))
    dimension = mean.numel()
    fits = (
        isinstance(eps, int | float)
        and 0 < eps < math.inf
        and mean.ndim == 3
        and list(triangle.shape) == [dimension * (dimension + 1) // 2]
        and mean.dtype == triangle.dtype == torch.float32
    )
    if not fits:
        raise UserError(
            f"a ZCA transform should have kind {KIND!r}, an eps above 0, and {_MEAN} [C, S, S] and "
            f"{_TRIANGLE} [D (D + 1) / 2] of float32 with D = C * S * S, but has {spec}, "
            f"{list(mean.shape)} of {mean.dtype} and {list(triangle.shape)} of {triangle.dtype}"
        )
    rows = triangle.new_zeros(dimension, dimension).masked_scatter_(_upper(dimension), triangle)
    return ZCA(mean, _symmetric(rows), float(spec["eps"]))


def fit(images: Tensor, eps: float = EPS) -> ZCA:
    """Find the whitening transform of a training set.

    Images are taken in blocks, so that the memory is that of a few ``D x D`` matrices. The sums are
    made of integers without rounding, and the eigenvectors are found on one thread: the result does
    not depend on the number of threads.

    Args:
        images: The training images. ``[N, C, S, S]``, uint8, on the CPU, at least two.
        eps: Added to every eigenvalue; the papers' 0.1 for pixels from 0 to 1.

    Returns:
        The transform, on the CPU.

    Raises:
        UserError: The matrices do not fit into the memory that is free, or there is one image only.
    """
    count, *shape = images.shape
    if count < 2:
        raise UserError(f"ZCA needs at least 2 training images, but there is {count}")
    dimension = math.prod(shape)
    check_memory(
        f"the matrices of ZCA, {dimension} x {dimension} numbers,",
        _MATRICES * 8 * dimension**2,
        "leave out --zca, which normalises each channel instead, or use smaller images",
    )
    total = torch.zeros(dimension, dtype=torch.float64)
    covariance = torch.zeros(dimension, dimension, dtype=torch.float64)
    for block in images.flatten(1).split(_BLOCK):
        shifted = block.to(torch.float32).sub_(_MIDDLE)
        total += shifted.sum(0)
        covariance += shifted.T @ shifted
    covariance.addr_(total, total, alpha=-1 / count).div_(255**2 * (count - 1))
    with one_thread():
        eigenvalues, vectors = torch.linalg.eigh(covariance)
        # Rounding can put an eigenvalue that is 0 just below it.
        matrix = (vectors * (eigenvalues.clamp(min=0) + eps).rsqrt()) @ vectors.T
    mean = (total / count + _MIDDLE) / 255
    return ZCA(mean.view(shape).to(torch.float32), _symmetric(matrix.to(torch.float32)), eps)


def _upper(dimension: int) -> Tensor:
    """Mask of the upper triangle of a matrix, the diagonal included. ``[D, D]``, bool."""
    return torch.ones(dimension, dimension, dtype=torch.bool).triu_()


def _symmetric(matrix: Tensor) -> Tensor:
    """The symmetric matrix with this one's upper triangle."""
    return matrix.triu().add_(matrix.triu(1).T)
