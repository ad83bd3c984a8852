"""Description of a network for the engine: its nodes, as plain integers."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from trajmatch.block import ACTIVATIONS, FUSED_KERNELS, LEAKY_SLOPE, POOLINGS
from trajmatch.networks.convnet import ConvNet
from trajmatch.networks.layers import ACTIVATION_LAYERS, ImageClassifier
from trajmatch.networks.resnet import ResidualBlock, ResNet18, ResNet18_AP
from trajmatch.networks.sequential import MLP, VGG11, AlexNet, LeNet

# Kinds of nodes (NodeKind in csrc/core/network.h), and places in one of norm, activation, pooling.
_CONVOLUTION, _NORM_ACT_POOL, _ADD, _MEAN = range(4)
_OVER_BATCH, _ACTIVATION, _POOLING = 4, 6, 7
#: Integers before the nodes, and of each.
_HEADER, _NODE = 5, 8


class _NotForTheEngine(Exception):
    """A module or an arrangement of modules that the engine does not run."""


def engine_description(model: nn.Module, precise: bool = False) -> list[int] | None:
    """The network in the order that ``csrc/ops/network.h`` reads.

    Args:
        model: Any module.
        precise: True for an engine without transforms that cost accuracy.

    Returns:
        Sizes and flags, then eight integers for each node. None for what the engine does not run:
        another class than the package's own networks, or one of them with other modules than it was
        made with, hooks, shared or frozen parameters, or batch norm in evaluation mode.
    """
    model = uncompiled(model)
    if type(model) not in _FORWARD or not isinstance(model, ImageClassifier):
        return None
    parameters = [*model.parameters()]
    if not all(parameter.requires_grad for parameter in parameters):
        return None
    channels, size, _ = model.image_shape
    graph = _Graph(channels, size)
    try:
        graph.visit(model, 0)
    except _NotForTheEngine:
        return None
    kind, _, classes, *_ = classifier = graph.nodes.pop()
    usual = kind == _CONVOLUTION and graph.flat and classifier[6] == 1
    whole = classifier[1] == len(graph.nodes) > 0
    if not (usual and whole) or [*map(id, graph.parameters)] != [*map(id, parameters)]:
        return None
    header = [channels, classes, size, int(precise), _fused_kernels()]
    return header + [number for node in graph.nodes for number in node]


def batch_norm_channels(description: list[int]) -> int:
    """Channels of all norms over the batch in what :func:`engine_description` gives."""
    nodes = zip(*[iter(description[_HEADER:])] * _NODE, strict=True)
    return sum(node[2] for node in nodes if node[0] == _NORM_ACT_POOL and node[_OVER_BATCH])


def uncompiled(model: nn.Module) -> nn.Module:
    """Return the module that ``torch.compile`` was given; any other module as it is."""
    return getattr(model, "_orig_mod", model)


def _fused_kernels() -> int:
    chosen = os.environ.get("TRAJMATCH_CUDA_BLOCKS", "first")
    if chosen not in FUSED_KERNELS:
        wanted = f"{', '.join(FUSED_KERNELS[:-1])} or {FUSED_KERNELS[-1]}"
        raise ValueError(f"TRAJMATCH_CUDA_BLOCKS must be {wanted}, but is {chosen!r}")
    return FUSED_KERNELS.index(chosen)


class _Graph:
    """The nodes of a network, made by visiting its modules in the order of their calls.

    Args:
        channels: Channels of the images.
        size: Side of the images.
    """

    def __init__(self, channels: int, size: int) -> None:
        self.nodes: list[list[int]] = []
        self.parameters: list[Tensor] = []  # in the order of the nodes
        self.flat = False  # whether values are rows by now
        self._shapes = [(channels, size)]  # of the values
        self._closed = 0  # nodes that nothing is merged into: others read them as they are

    def visit(self, module: nn.Module, value: int) -> int:
        """Add a module that reads a value, and return the value that it makes.

        Raises:
            _NotForTheEngine: The engine does not run it.
        """
        forward = _FORWARD.get(type(module))
        hooks = (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
        )
        if forward is None or any(hooks) or "forward" in vars(module):
            raise _NotForTheEngine
        return forward(self, module, value)

    def shape(self, value: int) -> tuple[int, int]:
        """Channels and side of a value."""
        return self._shapes[value]

    def add(self, numbers: list[int], channels: int, size: int, *parameters: Tensor | None) -> int:
        """Add a node, and return its value."""
        self.nodes.append(numbers + [0] * (_NODE - len(numbers)))
        self._shapes.append((channels, size))
        self.parameters += [each for each in parameters if each is not None]
        return len(self.nodes)

    def close(self) -> None:
        """Let other nodes read the values so far as they are."""
        self._closed = len(self.nodes)

    def norm_act_pool(self, value: int, place: int, number: int, size: int) -> int:
        """Add an activation or a pooling, to the norm before it where that can take it."""
        last = self.nodes[-1]
        open_ = value == len(self.nodes) > self._closed and last[0] == _NORM_ACT_POOL
        # Windows of a norm over the batch would reach from one image of odd height into the next.
        fits = not (place == _POOLING and last[_OVER_BATCH] and self._shapes[value][1] % 2)
        if not (open_ and fits and not any(last[place:])):
            value = self.add([_NORM_ACT_POOL, value], *self._shapes[value])
        self.nodes[-1][place] = number
        self._shapes[value] = self._shapes[value][0], size
        return value


def _require(*conditions: bool) -> None:
    if not all(conditions):
        raise _NotForTheEngine


def _chain(*names: str) -> Callable[[_Graph, Any, int], int]:
    """The calls of some children, one after the other; an empty name flattens."""

    def forward(graph: _Graph, module: nn.Module, value: int) -> int:
        for name in names:
            if name:
                value = graph.visit(getattr(module, name), value)
            else:
                graph.flat = True
        return value

    return forward


def _sequential(graph: _Graph, module: nn.Sequential, value: int) -> int:
    for layer in module:
        value = graph.visit(layer, value)
    return value


def _residual_block(graph: _Graph, module: ResidualBlock, value: int) -> int:
    graph.close()
    residual = graph.visit(module.residual, value)
    graph.close()
    shortcut = graph.visit(module.shortcut, value)
    _require(graph.shape(residual) == graph.shape(shortcut))
    total = graph.add([_ADD, residual, shortcut], *graph.shape(residual))
    return graph.visit(module.activation, total)


def _convolution(graph: _Graph, layer: nn.Conv2d, value: int) -> int:
    channels, size = graph.shape(value)
    kernel, stride, padding = layer.kernel_size[0], layer.stride[0], layer.padding[0]
    _require(
        not graph.flat,
        layer.in_channels == channels,
        layer.groups == 1,
        layer.dilation == (1, 1),
        layer.padding_mode == "zeros",
        layer.kernel_size == (kernel, kernel),
        layer.stride == (stride, stride),
        layer.padding == (padding, padding),
    )
    assert isinstance(padding, int)
    size = (size + 2 * padding - kernel) // stride + 1
    bias = int(layer.bias is not None)
    numbers = [_CONVOLUTION, value, layer.out_channels, kernel, stride, padding, bias]
    return graph.add(numbers, layer.out_channels, size, layer.weight, layer.bias)


def _linear(graph: _Graph, layer: nn.Linear, value: int) -> int:
    """A linear layer is a convolution whose kernel is as large as its input."""
    channels, size = graph.shape(value)
    _require(graph.flat, layer.in_features == channels * size**2)
    bias = int(layer.bias is not None)
    numbers = [_CONVOLUTION, value, layer.out_features, size, 1, 0, bias]
    return graph.add(numbers, layer.out_features, 1, layer.weight, layer.bias)


def _norm(
    graph: _Graph,
    layer: nn.GroupNorm | nn.LayerNorm | nn.BatchNorm2d,
    value: int,
    groups: int,
    over_batch: bool = False,
) -> int:
    shape = graph.shape(value)
    weight, bias = layer.weight, layer.bias
    _require(value > 0, not graph.flat, (weight is None) == (bias is None))
    parameters = 0 if weight is None else 2 if isinstance(layer, nn.LayerNorm) else 1
    (eps,) = struct.unpack("q", struct.pack("d", layer.eps))
    numbers = [_NORM_ACT_POOL, value, groups, parameters, int(over_batch), eps]
    return graph.add(numbers, *shape, weight, bias)


def _group_norm(graph: _Graph, layer: nn.GroupNorm, value: int) -> int:
    _require(layer.num_channels == graph.shape(value)[0])
    return _norm(graph, layer, value, layer.num_groups)


def _layer_norm(graph: _Graph, layer: nn.LayerNorm, value: int) -> int:
    channels, size = graph.shape(value)
    _require(layer.normalized_shape == (channels, size, size))
    return _norm(graph, layer, value, 1)


def _batch_norm(graph: _Graph, layer: nn.BatchNorm2d, value: int) -> int:
    channels = graph.shape(value)[0]
    _require(
        layer.training or layer.running_mean is None,
        layer.affine,  # its parameters show where it is called
        layer.num_features == channels,
    )
    return _norm(graph, layer, value, channels, over_batch=True)


def _activation(graph: _Graph, layer: nn.Module, value: int) -> int:
    _require(getattr(layer, "negative_slope", LEAKY_SLOPE) == LEAKY_SLOPE, value > 0)
    return graph.norm_act_pool(value, _ACTIVATION, _ACTIVATIONS[type(layer)], graph.shape(value)[1])


def _pooling(graph: _Graph, layer: nn.AvgPool2d | nn.MaxPool2d, value: int) -> int:
    average = isinstance(layer, nn.AvgPool2d)
    channels, size = graph.shape(value)
    window = layer.kernel_size
    _require(
        value > 0,
        not graph.flat,
        isinstance(window, int) and window <= size,
        layer.stride == window,
        layer.padding == 0,
        not layer.ceil_mode,
        getattr(layer, "divisor_override", None) is None,
        getattr(layer, "dilation", 1) == 1,
        not getattr(layer, "return_indices", False),
    )
    assert isinstance(window, int)
    if window != 2:
        _require(average)
        return graph.add([_MEAN, value, window], channels, size // window)
    number = POOLINGS.index("average" if average else "max")
    return graph.norm_act_pool(value, _POOLING, number, size // 2)


def _flatten(graph: _Graph, layer: nn.Flatten, value: int) -> int:
    _require(layer.start_dim == 1, layer.end_dim == -1)
    graph.flat = True
    return value


_ACTIVATIONS = {kind: ACTIVATIONS.index(name) for name, kind in ACTIVATION_LAYERS.items()}
#: What the forward pass of each module does with a value: of these exactly, since a subclass may
#: do anything.
_FORWARD: dict[type[nn.Module], Callable[[_Graph, Any, int], int]] = {
    **dict.fromkeys((ConvNet, AlexNet, VGG11, LeNet), _chain("features", "", "classifier")),
    **dict.fromkeys((ResNet18, ResNet18_AP), _chain("first", "blocks", "pooling", "classifier")),
    MLP: _chain("", "layers"),
    ResidualBlock: _residual_block,
    nn.Sequential: _sequential,
    nn.Conv2d: _convolution,
    nn.Linear: _linear,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.BatchNorm2d: _batch_norm,
    **dict.fromkeys(_ACTIVATIONS, _activation),
    nn.AvgPool2d: _pooling,
    nn.MaxPool2d: _pooling,
    nn.Flatten: _flatten,
}
