"""DSA augmentation with explicit parameters; each of its passes is one operator."""

from typing import Any

import torch
from torch import Tensor

from trajmatch.ops.errors import public_operator
from trajmatch.ops.registration import operators, register


@public_operator
def dsa(images: Tensor, parameters: Tensor) -> Tensor:
    """Return images, each augmented by its row of parameters (DSA; Zhao and Bilen, ICML 2021).

    Each augmentation is a linear map of the image, plus a constant for ``color``. The backward pass
    applies the transposed map. The same parameters give bit-identical results.

    Args:
        images: ``[B, C, H, W]``, float32 or float64, contiguous or channels-last; other layouts are
            made contiguous.
        parameters: ``[B, 5]``, float64, on the device of ``images``, made by the functions of
            :mod:`trajmatch.ops.dsa_parameters`. They get no gradient.

    Returns:
        ``[B, C, H, W]``, dtype, device and layout of ``images``. Differentiable any number of times
        in ``images``; second and higher derivatives are 0.

    Raises:
        ValueError: A shape or device does not fit, or (on the CPU) a parameter is not finite or of
            an unknown kind; on CUDA an unknown kind gives NaN.
        TypeError: A dtype is not supported.

    Example:
        >>> from trajmatch.ops import dsa_parameters
        >>> rows = dsa_parameters.flip(torch.tensor([True, False]))
        >>> dsa(torch.arange(6.0).view(2, 1, 1, 3), rows)[:, 0, 0].tolist()
        [[2.0, 1.0, 0.0], [3.0, 4.0, 5.0]]
    """
    return operators.dsa(images, parameters)


def _like(images: Tensor) -> Tensor:
    # As in the kernels: channels-last images stay channels-last, all others become contiguous.
    last = not images.is_contiguous() and images.is_contiguous(memory_format=torch.channels_last)
    memory_format = torch.channels_last if last else torch.contiguous_format
    return torch.empty_like(images, memory_format=memory_format)


def _backward(saved: Any, grad_out: Tensor) -> tuple[Tensor]:
    return (operators.dsa_backward(grad_out, saved.parameters),)


def _backward_backward(saved: Any, tangent: Tensor) -> tuple[Tensor]:
    # The backward pass is A^T grad_out, so its adjoint is A, the linear part of the forward pass.
    return (operators.dsa_tangent(tangent, saved.parameters),)


register("dsa", lambda given: _like(given.images), _backward, save="parameters")
register("dsa_tangent", lambda given: _like(given.images_tangent), _backward, save="parameters")
register("dsa_backward", lambda given: _like(given.grad_out), _backward_backward, save="parameters")
