"""ZCA whitening: decorrelated pixels that still look like an image.

With mean ``m`` and covariance ``U diag(S) U^T`` of the training images (pixels in 0..1, flattened
to ``D`` numbers, divisor ``N - 1``):

    x -> (x - m) W,    W = U diag(1 / sqrt(S + eps)) U^T,

as in kornia's ``ZCAWhitening``; the papers use eps = 0.1. ``W`` is symmetric positive definite, and
``eps`` keeps its condition number low (about 20 for CIFAR-10). So no inverse is stored:
:meth:`ZCA.invert` solves a linear system.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from trajmatch.data.preprocessing import Normalise, Preprocessing, unit
from trajmatch.errors import UserError
from trajmatch.memory import check_memory, one_thread

EPS = 0.1

KIND = "zca"
_MEAN, _TRIANGLE = "zca_mean", "zca_triangle"

# Pixels minus 128 have magnitude <= 128, and float32 represents every integer up to
# 2^24 = 1024 * 128 * 128. So sums of products over 1024 images are exact in any order.
_BLOCK = 1024
_MIDDLE = 128

# Number of D x D float64 matrices in memory during the eigendecomposition: the covariance, the
# eigenvectors, and two in LAPACK's workspace.
_MATRICES = 4


@dataclass(frozen=True, eq=False)
class ZCA(Preprocessing):
    """ZCA whitening; :func:`trajmatch.data.zca.fit` computes it from images.

    Attributes:
        mean: Mean of the training images, pixels in 0..1. ``[C, S, S]``, float32.
        matrix: ``W``, symmetric. ``[D, D]``, float32, with ``D = C * S * S``.
        eps: Constant added to every eigenvalue of the covariance.
    """

    mean: Tensor
    matrix: Tensor
    eps: float = EPS

    def __repr__(self) -> str:
        return f"<ZCA of images {list(self.mean.shape)}, eps {self.eps:g}>"

    def apply(self, images: Tensor) -> Tensor:
        """Whiten pixels."""
        # Blocks limit the extra memory: only one block at a time is copied to float32 pixels.
        whitened = torch.empty(images.shape, dtype=torch.float32, device=images.device)
        for pixels, block in zip(images.split(_BLOCK), whitened.split(_BLOCK), strict=True):
            centred = unit(pixels).sub_(self.mean)
            block.copy_((centred.flatten(1) @ self.matrix).view(pixels.shape))
        return whitened

    def invert(self, images: Tensor) -> Tensor:
        """Convert whitened images to pixels."""
        # Solve W X = images^T for X [D, N] by Cholesky; float64 limits the loss of digits.
        columns = images.flatten(1).to(torch.float64).T
        solved = torch.cholesky_solve(columns, self._factor).T.reshape(images.shape)
        return solved.add_(self.mean).to(images.dtype)

    def to(self, device: str | torch.device) -> "ZCA":
        """Return a copy on a device, or the same object if it is there already."""
        if self.mean.device == torch.device(device):
            return self
        return ZCA(self.mean.to(device), self.matrix.to(device), self.eps)

    def staged(self, images: Tensor) -> tuple[Tensor, Normalise]:
        """Whiten all images at once; nothing is left to do per batch."""
        return self.to(images.device).apply(images), lambda batch: batch

    def spec(self) -> dict[str, Any]:
        """Return ``kind`` and ``eps``; :meth:`tensors` returns mean and matrix."""
        return spec(self.eps)

    def tensors(self) -> dict[str, Tensor]:
        """Return ``zca_mean [C, S, S]`` and the upper triangle of ``W``, row by row, float32."""
        triangle = self.matrix.masked_select(_upper(len(self.matrix)).to(self.matrix.device))
        return {_MEAN: self.mean, _TRIANGLE: triangle}

    @cached_property
    def _factor(self) -> Tensor:
        return torch.linalg.cholesky(self.matrix.to(torch.float64))


def spec(eps: float = EPS) -> dict[str, Any]:
    """Return the spec of a transform that is not fitted yet; see :meth:`ZCA.spec`."""
    return {"kind": KIND, "eps": eps}


def from_parts(spec: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> ZCA:
    """Rebuild a transform from its spec and tensors; raise UserError if they are invalid."""
    eps = spec.get("eps") if isinstance(spec, Mapping) and spec.get("kind") == KIND else None
    mean, triangle = (tensors.get(name, torch.empty(0)) for name in (_MEAN, _TRIANGLE))
    dimension = mean.numel()
    # The file is untrusted. The triangle of a D x D matrix has D (D + 1) / 2 entries.
    fits = (
        isinstance(eps, int | float)
        and 0 < eps < math.inf
        and mean.ndim == 3
        and list(triangle.shape) == [dimension * (dimension + 1) // 2]
        and mean.dtype == triangle.dtype == torch.float32
    )
    if not fits:
        raise UserError(
            f"a ZCA transform should have kind {KIND!r} and an eps above 0, but has {spec}; "
            f"{_MEAN} should be [C, S, S], float32, but is {list(mean.shape)}, {mean.dtype}; "
            f"{_TRIANGLE} should be [D (D + 1) / 2], float32, for D = C * S * S, but is "
            f"{list(triangle.shape)}, {triangle.dtype}"
        )
    rows = triangle.new_zeros(dimension, dimension).masked_scatter_(_upper(dimension), triangle)
    return ZCA(mean, _symmetric(rows), float(spec["eps"]))


def fit(images: Tensor, eps: float = EPS) -> ZCA:
    """Fit the transform to at least two uint8 images ``[N, C, S, S]`` on the CPU.

    The result does not depend on the number of threads. Memory for four ``D x D`` float64 matrices
    is needed; if it is not free, UserError is raised.
    """
    count, *shape = images.shape
    if count < 2:
        raise UserError(f"ZCA needs at least 2 training images, but got {count}")
    dimension = math.prod(shape)
    check_memory(
        f"the matrices of ZCA, {dimension} x {dimension} numbers,",
        _MATRICES * 8 * dimension**2,
        "leave out --zca, which normalises each channel instead, or use smaller images",
    )
    # Exact sums of y = 255 x - 128: over a block in float32, over all blocks in float64.
    total = torch.zeros(dimension, dtype=torch.float64)
    covariance = torch.zeros(dimension, dimension, dtype=torch.float64)
    for block in images.flatten(1).split(_BLOCK):
        shifted = block.to(torch.float32).sub_(_MIDDLE)
        total += shifted.sum(0)
        covariance += shifted.T @ shifted
    # Unbiased covariance of x in 0..1: (sum y y^T - sum y sum y^T / N) / (255^2 (N - 1)).
    covariance.addr_(total, total, alpha=-1 / count).div_(255**2 * (count - 1))
    # The rounding of LAPACK and of the product depends on the number of threads.
    with one_thread():
        eigenvalues, vectors = torch.linalg.eigh(covariance)
        # W = U diag(1 / sqrt(S + eps)) U^T. Rounding can make a zero eigenvalue slightly negative.
        matrix = (vectors * (eigenvalues.clamp(min=0) + eps).rsqrt()) @ vectors.T
    mean = (total / count + _MIDDLE) / 255
    return ZCA(mean.view(shape).to(torch.float32), _symmetric(matrix.to(torch.float32)), eps)


def _upper(dimension: int) -> Tensor:
    """Return the mask of the upper triangle with the diagonal. ``[D, D]``, bool."""
    return torch.ones(dimension, dimension, dtype=torch.bool).triu_()


def _symmetric(matrix: Tensor) -> Tensor:
    """Return a copy whose lower triangle mirrors the upper one."""
    return matrix.triu().add_(matrix.triu(1).T)
