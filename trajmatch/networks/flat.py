"""A module's parameters as one flat vector, in the order of ``module.parameters()``.

And its running statistics, in the order of ``module.named_buffers()``: parameters decide how a
network trains; in evaluation mode batch norm also needs the mean and variance that it has met,
which PyTorch keeps in buffers.
"""

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


def split(
    flat: Tensor, shapes: Mapping[str, torch.Size], name: str = "the vector"
) -> dict[str, Tensor]:
    """Views of a flat vector ``[P]`` by parameter name.

    Args:
        flat: The vector: parameters, or a gradient or difference of parameters.
        shapes: Result of :func:`parameter_shapes`.
        name: Of the vector, for the message.

    Returns:
        One view for each name, in its shape.

    Raises:
        ValueError: The vector has another size.
    """
    sizes = [shape.numel() for shape in shapes.values()]
    if flat.shape != (sum(sizes),):
        raise ValueError(
            f"expected {name} to have shape [{sum(sizes)}], but got {list(flat.shape)}"
        )
    parts = zip(shapes.items(), flat.split(sizes), strict=True)
    return {key: part.view(shape) for (key, shape), part in parts}


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
    masks = (torch.full_like(each, each.requires_grad) for each in model.parameters())
    return torch.cat([mask.detach().reshape(-1) for mask in masks])


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
    copy_flat(theta, dict(model.named_parameters()), f"the parameters of {type(model).__name__}")


def copy_flat(flat: Tensor, targets: Mapping[str, Tensor], name: str) -> None:
    """Copy the parts of a flat vector into tensors; raise ValueError if they have another size."""
    parts = split(flat, {key: each.shape for key, each in targets.items()}, name)
    with torch.no_grad():
        for key, part in parts.items():
            targets[key].copy_(part)


def split_flat(model: nn.Module, theta: Tensor) -> dict[str, Tensor]:
    """Views of ``theta [P]``, one for each parameter of the model, by name.

    Views of frozen parameters (``requires_grad=False``) are detached: a loss has no gradient there.

    Raises:
        ValueError: ``theta`` is not ``[P]`` of this model.
    """
    frozen = {name for name, each in model.named_parameters() if not each.requires_grad}
    name = f"theta, the parameters of {type(model).__name__},"
    views = split(theta, parameter_shapes(model), name)
    return {key: view.detach() if key in frozen else view for key, view in views.items()}


def call_flat(
    model: nn.Module, theta: Tensor, images: Tensor, update_buffers: bool = False
) -> Tensor:
    """The model's output for parameters ``theta [P]``; differentiable in both arguments.

    Buffers are passed as copies, on the device and in the dtype of ``theta``, so that the model
    itself is left as it was; with ``update_buffers`` it uses and changes its own.
    """
    buffers = {}
    if not update_buffers:
        for name, buffer in model.named_buffers():
            dtype = theta.dtype if buffer.is_floating_point() else buffer.dtype
            buffers[name] = buffer.to(theta.device, dtype, copy=True)
    return functional_call(model, {**split_flat(model, theta), **buffers}, (images,))


def num_buffers(model: nn.Module) -> int:
    """Number of values ``Q`` in the buffers that a state dict holds."""
    return sum(buffer.numel() for buffer in _kept(model).values())


def flat_buffers(model: nn.Module) -> Tensor:
    """A copy of the buffers as one vector ``[Q]``, float32, on their device; empty without any.

    Counts, such as that of the batches seen, are exact up to ``2**24``.
    """
    kept = [buffer.detach().reshape(-1).to(torch.float32) for buffer in _kept(model).values()]
    return torch.cat(kept) if kept else torch.empty(0)


def load_flat_buffers(model: nn.Module, flat: Tensor) -> None:
    """Copy a flat vector ``[Q]`` into the model's buffers.

    Raises:
        ValueError: ``flat`` is not ``[Q]`` of this model.
    """
    copy_flat(flat, _kept(model), f"the buffers of {type(model).__name__}")


def _kept(model: nn.Module) -> dict[str, Tensor]:
    """The persistent buffers: the others (masks, tables) are made by the constructor."""
    state = model.state_dict(keep_vars=True)
    return {name: buffer for name, buffer in model.named_buffers() if name in state}
