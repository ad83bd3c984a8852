"""Rates of the machine, arithmetic and memory, to hold achieved ones against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bench.timing import seconds
from trajmatch import ops

#: Sides of the matrices, and channels and batch of the convolution, of which the best rate counts.
MATRIX_SIDES = (512, 1024, 2048)
CONVOLUTION = (128, 50)
#: Elements of the vectors: 64 MiB each in float32, more than caches hold.
VECTOR = 2**24
CALLS = 7


def machine_rates(
    device: str = "cpu",
    sides: tuple[int, ...] = MATRIX_SIDES,
    convolution: tuple[int, int] = CONVOLUTION,
    vector: int = VECTOR,
) -> dict[str, Any]:
    """Measure PyTorch's best products and copies, and our vector operators.

    Args:
        device: Where to measure.
        sides: Sides of square matrices to multiply.
        convolution: Channels and images of a 3x3 convolution on 16x16 pixels in channels-last.
        vector: Elements of the vectors.

    Returns:
        ``product_gflops``, the best of ``products`` (GFLOP/s by name); ``copy_gbps``;
        ``vector_gbps`` (GB/s by operator). Bytes are those that have to be read and written once.
    """
    products = {f"matrix product {side}": _matrix_product(side, device) for side in sides}
    products["convolution"] = _convolution(*convolution, device)
    return {
        "product_gflops": max(products.values()),
        "products": products,
        "copy_gbps": _copy(vector, device),
        "vector_gbps": _vector_updates(vector, device),
    }


def _best(function: Callable[[], Any], device: str) -> float:
    function()
    return min(seconds(function, device) for _ in range(CALLS))


def _matrix_product(side: int, device: str) -> float:
    left, right, out = (torch.rand(side, side, device=device) for _ in range(3))
    # A GPU's convolutions use TF32 unless told otherwise: compare with products that do so too.
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if torch.backends.cudnn.allow_tf32 else "highest")
    try:
        return 2 * side**3 / _best(lambda: torch.mm(left, right, out=out), device) / 1e9
    finally:
        torch.set_float32_matmul_precision(before)


def _convolution(channels: int, images: int, device: str) -> float:
    x = torch.rand(images, channels, 16, 16, device=device)
    weight = torch.rand(channels, channels, 3, 3, device=device)
    x, weight = (each.contiguous(memory_format=torch.channels_last) for each in (x, weight))
    taken = _best(lambda: torch.conv2d(x, weight, padding=1), device)
    return 2 * 9 * channels**2 * 256 * images / taken / 1e9


def _copy(elements: int, device: str) -> float:
    source, target = (torch.rand(elements, device=device) for _ in range(2))
    return 2 * 4 * elements / _best(lambda: target.copy_(source), device) / 1e9


def _vector_updates(elements: int, device: str) -> dict[str, float]:
    theta, grad, buffer = (torch.rand(elements, device=device) for _ in range(3))
    calls: dict[str, tuple[int, Callable[[], Any]]] = {  # vectors read and written, and the call
        "sgd_step": (5, lambda: ops.sgd_step(theta, grad, 0.01, buffer, 0.9)),
        "sgd_step_adjoint": (5, lambda: ops.sgd_step_adjoint(theta, grad, buffer, 0.01, 0.9)),
        "param_distance": (3, lambda: ops.param_distance(theta, grad, buffer)),
    }
    return {
        name: vectors * 4 * elements / _best(call, device) / 1e9
        for name, (vectors, call) in calls.items()
    }
