"""Description of a network for the engine: its blocks, as plain integers."""

from __future__ import annotations

from torch import nn

from trajmatch.block import ACTIVATIONS, NORMS, POOLINGS
from trajmatch.networks.convnet import ConvNet
from trajmatch.networks.layers import ACTIVATION_LAYERS, POOLING_LAYERS, convolved
from trajmatch.networks.sequential import MLP, VGG11, AlexNet, LeNet

_SEQUENTIAL = (ConvNet, AlexNet, VGG11, LeNet, MLP)
# Places in a block, after channels, kernel, stride and padding of its convolution.
_NORM, _ACTIVATION, _POOLING = 4, 5, 6
#: Place and number of the layers that have one number for each type.
_NUMBERS: dict[type[nn.Module], tuple[int, int]] = {
    **{kind: (_ACTIVATION, ACTIVATIONS.index(name)) for name, kind in ACTIVATION_LAYERS.items()},
    **{kind: (_POOLING, POOLINGS.index(name)) for name, kind in POOLING_LAYERS.items()},
    nn.LayerNorm: (_NORM, NORMS.index("layer")),
}


def engine_description(model: nn.Module, precise: bool = False) -> list[int] | None:
    """The network in the order that ``csrc/ops/network.h`` reads.

    The engine runs blocks of convolution, norm, activation and 2x2 pooling, one after the other,
    and a linear layer at the end. A linear layer before that is a convolution whose kernel is as
    large as its input; a block without convolution has a kernel of 0.

    Args:
        model: Any module.
        precise: True for an engine without transforms that cost accuracy.

    Returns:
        ``in_channels, num_classes, image_size, precise``, then of every block ``channels, kernel,
        stride, padding, norm, activation, pooling``. None for what the engine does not run: another
        class than the package's own networks, a residual network, one with batch norm, or one with
        frozen parameters.
    """
    model = uncompiled(model)
    if type(model) not in _SEQUENTIAL:
        return None
    if not all(parameter.requires_grad for parameter in model.parameters()):
        return None
    spec = model.spec()  # type: ignore[operator]
    size = spec["image_size"]
    description = [spec["in_channels"], spec["num_classes"], size, int(precise)]
    blocks: list[list[int]] = []
    layers = [module for module in model.modules() if next(module.children(), None) is None]
    for layer in layers[:-1]:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            blocks.append(_convolution(layer, size))
            size = convolved(size, *(blocks[-1][place] for place in (1, 3, 2)))
            continue
        if isinstance(layer, nn.GroupNorm):
            instance = layer.num_groups == layer.num_channels
            place, number = _NORM, NORMS.index("instance" if instance else "group")
        elif type(layer) in _NUMBERS:
            place, number = _NUMBERS[type(layer)]
        else:  # batch norm
            return None
        if blocks[-1][place]:  # a pooling of what is pooled already
            blocks.append([blocks[-1][0], 0, 1, 0, 0, 0, 0])
        blocks[-1][place] = number
        if place == _POOLING:
            size //= 2
    return description + [number for block in blocks for number in block]


def uncompiled(model: nn.Module) -> nn.Module:
    """Return the module that ``torch.compile`` was given; any other module as it is."""
    return getattr(model, "_orig_mod", model)


def _convolution(layer: nn.Conv2d | nn.Linear, size: int) -> list[int]:
    """A block of a convolution or linear layer alone; ``size`` is the side of its input."""
    if isinstance(layer, nn.Linear):
        return [layer.out_features, size, 1, 0, 0, 0, 0]
    kernel, stride, padding = layer.kernel_size[0], layer.stride[0], int(layer.padding[0])
    return [layer.out_channels, kernel, stride, padding, 0, 0, 0]
