"""Flat vectors of a module's parameters and buffers.

Parameters ``[P]`` have the order of ``module.parameters()``. Persistent buffers ``[Q]``, such as
batch norm's running statistics, have the order of ``module.named_buffers()``.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call


def num_parameters(model: nn.Module) -> int:
    """Return the number of parameters ``P`` of the model."""
    return sum(parameter.numel() for parameter in model.parameters())


def parameter_shapes(model: nn.Module) -> dict[str, torch.Size]:
    """Return the shapes of the parameters by name, in the order of a flat vector."""
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def split(
    flat: Tensor, shapes: Mapping[str, torch.Size], name: str = "the vector"
) -> dict[str, Tensor]:
    """Return views of a vector ``[P]`` by parameter name; raise ValueError if its size is wrong.

    ``shapes`` is a result of :func:`parameter_shapes`. The message calls the vector ``name``.
    """
    sizes = [shape.numel() for shape in shapes.values()]
    if flat.shape != (sum(sizes),):
        raise ValueError(
            f"expected {name} to have shape [{sum(sizes)}], but got {list(flat.shape)}"
        )
    parts = zip(shapes.items(), flat.split(sizes), strict=True)
    return {key: part.view(shape) for (key, shape), part in parts}


def flat_parameters(model: nn.Module) -> Tensor:
    """Return a copy of the parameters as one vector ``[P]``, detached."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])


def trainable(model: nn.Module) -> Tensor | None:
    """Return a mask ``[P]``: 1 for trained, 0 for frozen parameters; None if none are frozen."""
    if all(parameter.requires_grad for parameter in model.parameters()):
        return None
    masks = (torch.full_like(each, each.requires_grad) for each in model.parameters())
    return torch.cat([mask.detach().reshape(-1) for mask in masks])


def decayed(grad: Tensor, theta: Tensor, weight_decay: float, trainable: Tensor | None) -> Tensor:
    """Return ``grad + weight_decay * theta``, without decay where the mask ``trainable`` is 0."""
    return grad.add(theta if trainable is None else theta * trainable, alpha=weight_decay)


def load_flat_parameters(model: nn.Module, theta: Tensor) -> None:
    """Copy a vector ``[P]`` into the model's parameters; raise ValueError if its size is wrong."""
    copy_flat(theta, dict(model.named_parameters()), f"the parameters of {type(model).__name__}")


def copy_flat(flat: Tensor, targets: Mapping[str, Tensor], name: str) -> None:
    """Copy the parts of a flat vector into tensors; raise ValueError if its size is wrong."""
    parts = split(flat, {key: each.shape for key, each in targets.items()}, name)
    with torch.no_grad():
        for key, part in parts.items():
            targets[key].copy_(part)


def split_flat(model: nn.Module, theta: Tensor) -> dict[str, Tensor]:
    """Return views of ``theta [P]`` by parameter name; raise ValueError if its size is wrong.

    Views of frozen parameters (``requires_grad=False``) are detached and get no gradient.
    """
    frozen = {name for name, each in model.named_parameters() if not each.requires_grad}
    name = f"theta, the parameters of {type(model).__name__},"
    views = split(theta, parameter_shapes(model), name)
    return {key: view.detach() if key in frozen else view for key, view in views.items()}


def call_flat(
    model: nn.Module, theta: Tensor, images: Tensor, update_buffers: bool = False
) -> Tensor:
    """Return the model's output for parameters ``theta [P]``; differentiable in theta and images.

    By default the model is not changed: it runs on copies of its buffers, with device and dtype of
    ``theta``. With ``update_buffers`` it uses and changes its own buffers.
    """
    buffers = {}
    if not update_buffers:
        for name, buffer in model.named_buffers():
            dtype = theta.dtype if buffer.is_floating_point() else buffer.dtype
            buffers[name] = buffer.to(theta.device, dtype, copy=True)
    return functional_call(model, {**split_flat(model, theta), **buffers}, (images,))


def num_buffers(model: nn.Module) -> int:
    """Return the number of values ``Q`` in the persistent buffers."""
    return sum(buffer.numel() for buffer in _kept(model).values())


def flat_buffers(model: nn.Module) -> Tensor:
    """Return a copy of the persistent buffers as one float32 vector ``[Q]``, possibly empty.

    Counts, such as batch norm's number of batches, are exact up to ``2**24``.
    """
    kept = [buffer.detach().reshape(-1).to(torch.float32) for buffer in _kept(model).values()]
    return torch.cat(kept) if kept else torch.empty(0)


def load_flat_buffers(model: nn.Module, flat: Tensor) -> None:
    """Copy a vector ``[Q]`` into the model's buffers; raise ValueError if its size is wrong."""
    copy_flat(flat, _kept(model), f"the buffers of {type(model).__name__}")


def _kept(model: nn.Module) -> dict[str, Tensor]:
    """Return the persistent buffers."""
    # The others, such as masks and tables, are made by the constructor and are not in the state.
    state = model.state_dict(keep_vars=True)
    return {name: buffer for name, buffer in model.named_buffers() if name in state}
