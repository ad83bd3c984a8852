"""A module's parameters as one flat vector, in the order of ``module.parameters()``."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call


def num_parameters(model: nn.Module) -> int:
    """Number of parameters ``P`` of the model."""
    return sum(parameter.numel() for parameter in model.parameters())


def parameter_shapes(model: nn.Module) -> dict[str, torch.Size]:
    """Shapes of the parameters by name, in the order of a flat vector."""
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def split(theta: Tensor, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Views of a flat vector ``[P]`` by parameter name.

    Args:
        theta: The vector: parameters, or a gradient or difference of parameters.
        shapes: Result of :func:`parameter_shapes`.

    Returns:
        One view for each name, in its shape.
    """
    parts = theta.split([shape.numel() for shape in shapes.values()])
    return {
        name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }


def flat_parameters(model: nn.Module) -> Tensor:
    """A copy of the parameters as one vector ``[P]``, detached."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])


def trainable(model: nn.Module) -> Tensor | None:
    """Mask of the parameters that are trained: 1, and 0 for frozen ones (``requires_grad=False``).

    Returns:
        ``[P]``, dtype and device of the parameters; None where no parameter is frozen.
    """
    if all(parameter.requires_grad for parameter in model.parameters()):
        return None
    return torch.cat(
        [
            torch.full_like(parameter, parameter.requires_grad).detach().reshape(-1)
            for parameter in model.parameters()
        ]
    )


def decayed(grad: Tensor, theta: Tensor, weight_decay: float, trainable: Tensor | None) -> Tensor:
    """Add the gradient of weight decay, of trained parameters alone.

    Args:
        grad: Gradient of the loss. ``[P]``.
        theta: Parameters. ``[P]``.
        weight_decay: Factor of the parameters.
        trainable: What :func:`trainable` gives.

    Returns:
        ``[P]``.
    """
    return grad.add(theta if trainable is None else theta * trainable, alpha=weight_decay)


def load_flat_parameters(model: nn.Module, theta: Tensor) -> None:
    """Copy a flat vector ``[P]`` into the model's parameters.

    Raises:
        ValueError: ``theta`` is not ``[P]`` of this model.
    """
    with torch.no_grad():
        for parameter, value in zip(
            model.parameters(), split_flat(model, theta).values(), strict=True
        ):
            parameter.copy_(value)


def split_flat(model: nn.Module, theta: Tensor) -> dict[str, Tensor]:
    """Views of ``theta [P]``, one for each parameter of the model, by name.

    Views of frozen parameters (``requires_grad=False``) are detached: a loss has no gradient there.

    Raises:
        ValueError: ``theta`` is not ``[P]`` of this model.
    """
    expected = num_parameters(model)
    if theta.shape != (expected,):
        raise ValueError(
            f"expected theta to have shape [{expected}] (the parameters of "
            f"{type(model).__name__}), but got {list(theta.shape)}"
        )
    frozen = {name for name, each in model.named_parameters() if not each.requires_grad}
    views = split(theta, parameter_shapes(model))
    return {name: view.detach() if name in frozen else view for name, view in views.items()}


def call_flat(
    model: nn.Module, theta: Tensor, images: Tensor, update_buffers: bool = False
) -> Tensor:
    """The model's output for parameters ``theta [P]``; differentiable in both arguments.

    Buffers are passed as copies, on the device and in the dtype of ``theta``, so that the model
    itself is left as it was; with ``update_buffers`` it uses and changes its own.
    """
    buffers = {} if update_buffers else _copied_buffers(model, theta)
    return functional_call(model, {**split_flat(model, theta), **buffers}, (images,))


def _copied_buffers(model: nn.Module, like: Tensor) -> dict[str, Tensor]:
    return {
        name: buffer.to(
            like.device, like.dtype if buffer.is_floating_point() else buffer.dtype, copy=True
        )
        for name, buffer in model.named_buffers()
    }
