"""Description of a network for the engine, as a list of integers."""

import struct
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn

from trajmatch.block import ACTIVATIONS, LEAKY_SLOPE, POOLINGS, CudaBlocks
from trajmatch.networks.convnet import ConvNet
from trajmatch.networks.layers import ACTIVATION_LAYERS, ImageClassifier, convolved
from trajmatch.networks.resnet import ResidualBlock, ResNet18, ResNet18_AP
from trajmatch.networks.sequential import MLP, VGG11, AlexNet, LeNet

# Kinds of nodes (NodeKind in csrc/core/network.h), and indices into a _NORM_ACT_POOL node.
_CONVOLUTION, _NORM_ACT_POOL, _ADD, _MEAN = range(4)
_OVER_BATCH, _ACTIVATION, _POOLING = 4, 6, 7
#: Number of integers before the nodes, and per node.
_HEADER, _NODE = 5, 8
#: Index of the blocks, the last integer of the header.
_BLOCKS = 4


class _NotForTheEngine(Exception):
    """Raised for a module, or an arrangement of modules, that the engine does not run."""


def engine_description(model: nn.Module, precise: bool = False) -> list[int] | None:
    """Return the engine's description of a model, or None if the engine does not run the model.

    The description has sizes and flags, then eight integers per node (``csrc/ops/network.h``).
    ``precise`` avoids convolution transforms that cost accuracy. The engine runs the package's
    networks, but not with unsupported layers or layer settings, hooks, shared or frozen
    parameters, or batch norm in evaluation mode.
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
    # The last node must be a linear layer with bias that reads the last value. It is left out of
    # the description, because the engine always adds this layer.
    kind, _, classes, *_ = classifier = graph.nodes.pop()
    # classifier[6] is 1 if it has a bias; classifier[1] is the value that it reads.
    usual = kind == _CONVOLUTION and graph.flat and classifier[6] == 1
    whole = classifier[1] == len(graph.nodes) > 0
    # graph.parameters are in the order of calls, so the comparison with the model's order finds
    # shared, unused and reordered parameters.
    if not (usual and whole) or [*map(id, graph.parameters)] != [*map(id, parameters)]:
        return None
    # `auto` must not round operands unless PyTorch's own convolutions do.
    fused = "first" if _fused == "auto" and not _convolutions_round() else _fused
    header = [channels, classes, size, int(precise)]
    nodes = [number for node in graph.nodes for number in node]
    if fused == "auto" and _fastest:
        fused = _fastest_blocks((*header, *nodes)) or fused
    return [*header, _FUSED_KERNELS.index(fused), *nodes]


def batch_norm_channels(description: list[int]) -> int:
    """Return the number of channels of all batch norms in an engine description."""
    nodes = zip(*[iter(description[_HEADER:])] * _NODE, strict=True)
    return sum(node[2] for node in nodes if node[0] == _NORM_ACT_POOL and node[_OVER_BATCH])


def uncompiled(model: nn.Module) -> nn.Module:
    """Return the original of a compiled module; any other module unchanged."""
    return getattr(model, "_orig_mod", model)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _convolutions_round() -> bool:
    """Return True if PyTorch's convolutions on CUDA may round their operands to TF32."""
    precision: str = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    return precision == "tf32"


#: Fastest blocks of networks, as measured for ``auto``. A key is a description without the blocks.
_fastest: dict[tuple[int, ...], CudaBlocks] = {}


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _fastest_blocks(network: tuple[int, ...]) -> CudaBlocks | None:
    """Return the fastest blocks of a network; None if they were not measured."""
    return _fastest.get(network)


_FUSED_KERNELS = get_args(CudaBlocks)
_fused: CudaBlocks = "auto"


@contextmanager
def cuda_blocks(kind: CudaBlocks) -> Iterator[None]:
    """Choose which blocks of a ConvNet run on trajmatch's own CUDA kernels, inside the context.

    The choice holds for all threads, like PyTorch's own backend flags. It changes results by
    rounding only, and has no effect on the CPU.

    Args:
        kind: ``library``: no block. ``first``: the first block. ``tf32`` or ``fp16``: also deeper
            blocks of 32, 64 or 128 channels on 16x16 or 8x8 pixels, with operands rounded to that
            format (compute capability 8.0 or later). ``auto``, the default: as ``tf32`` for blocks
            of up to 64 channels (an H200 was faster with it at width 32, with older kernels; width
            64 was not measured). For other blocks, and if PyTorch does not allow TF32 in
            convolutions, as ``first``. When ``trajmatch distill`` and ``trajmatch expert`` record a
            CUDA graph with ``auto``, they measure ``tf32`` and ``first`` and take the faster one.

    Raises:
        ValueError: The kind is unknown.
    """
    global _fused
    if kind not in _FUSED_KERNELS:
        wanted = f"{', '.join(_FUSED_KERNELS[:-1])} or {_FUSED_KERNELS[-1]}"
        raise ValueError(f"kind must be {wanted}, but is {kind!r}")
    before, _fused = _fused, kind
    try:
        yield
    finally:
        _fused = before


class BlocksWay(NamedTuple):
    """Blocks that a network may run with: a :class:`trajmatch.recording.Way`."""

    kind: CudaBlocks
    network: tuple[int, ...]

    def __call__(self) -> AbstractContextManager[None]:
        """Return a context in which the network runs with these blocks."""
        return cuda_blocks(self.kind)

    def keep(self) -> None:
        """Let ``auto`` be these blocks for the network, in this process."""
        _fastest[self.network] = self.kind


def ways_to_measure(
    model: nn.Module, device: torch.device, precise: bool = False
) -> list[BlocksWay]:
    """Return the ways of which ``cuda_blocks("auto")`` should take the fastest on a device.

    The list is empty if the fastest is known; on a CPU; for a network other than a ConvNet; if
    another kind of blocks was chosen; and if PyTorch does not allow TF32. For some ConvNets, all
    ways compute the same.
    """
    measures = device.type == "cuda" and isinstance(uncompiled(model), ConvNet)
    description = engine_description(model, precise) if measures else None
    if description is None or description[_BLOCKS] != _FUSED_KERNELS.index("auto"):
        return []
    network = (*description[:_BLOCKS], *description[_HEADER:])
    return [BlocksWay("first", network), BlocksWay("tf32", network)]


class _Graph:
    """Nodes of a network, made by visiting its modules in the order of their calls."""

    def __init__(self, channels: int, size: int) -> None:
        # Value 0 is the images, and node i makes value i + 1.
        self.nodes: list[list[int]] = []
        # Channels and side of each value.
        self.shapes = [(channels, size)]
        self.parameters: list[Tensor] = []
        # True once values are flattened to rows.
        self.flat = False
        # Number of nodes that must not change, because others read their values.
        self._closed = 0

    def visit(self, module: nn.Module, value: int) -> int:
        """Add a module that reads value number ``value``; return the number of its output value."""
        kind, own = type(module), vars(module)
        # A hook, or a forward that is set on the instance, may do anything.
        _needs(kind in _FORWARD and "forward" not in own and not any(own[each] for each in _HOOKS))
        _needs(all(getattr(module, name) == usual for name, usual in _USUAL.get(kind, {}).items()))
        return _FORWARD[kind](self, module, value)

    def add(self, kind: int, value: int, *numbers: int, shape: tuple[int, int]) -> int:
        """Add a node; return the number of its output value."""
        self.nodes.append([kind, value, *numbers, *[0] * (_NODE - 2 - len(numbers))])
        self.shapes.append(shape)
        return len(self.nodes)

    def close(self) -> None:
        """Keep later layers from being fused into the nodes added so far."""
        self._closed = len(self.nodes)

    def extend(self, value: int, place: int, number: int) -> int:
        """Add an activation or pooling, fused into the preceding norm node if possible."""
        _needs(value > 0 and not (place == _POOLING and self.flat))
        last, (channels, size) = self.nodes[-1], self.shapes[value]
        open_ = value == len(self.nodes) > self._closed and last[0] == _NORM_ACT_POOL
        # For batch norm, CUDA treats a batch as one tall image: at odd heights a fused pooling
        # window would cover rows of two images.
        fits = not (place == _POOLING and last[_OVER_BATCH] and size % 2)
        if not (open_ and fits and not any(last[place:])):
            value = self.add(_NORM_ACT_POOL, value, shape=(channels, size))
        self.nodes[-1][place] = number
        self.shapes[value] = channels, size // 2 if place == _POOLING else size
        return value


def _needs(condition: bool) -> None:
    """Raise _NotForTheEngine unless the condition holds."""
    if not condition:
        raise _NotForTheEngine


def _chain(*names: str) -> "_Forward":
    """Return a function that adds a module's children to the graph, in the order of ``names``.

    An empty name stands for flattening the activations.
    """

    def forward(graph: _Graph, module: nn.Module, value: int) -> int:
        for name in names:
            graph.flat = graph.flat or not name
            value = graph.visit(getattr(module, name), value) if name else value
        return value

    return forward


def _sequential(graph: _Graph, module: nn.Sequential, value: int) -> int:
    for layer in module:
        value = graph.visit(layer, value)
    return value


def _residual_block(graph: _Graph, module: ResidualBlock, value: int) -> int:
    ends = []
    for branch in (module.residual, module.shortcut):
        # Several nodes read these values, so no later layer may be fused into them.
        graph.close()
        ends.append(graph.visit(branch, value))
    first, second = (graph.shapes[end] for end in ends)
    _needs(first == second)
    return graph.visit(module.activation, graph.add(_ADD, *ends, shape=first))


def _convolution(graph: _Graph, layer: nn.Conv2d, value: int) -> int:
    sides = {*layer.kernel_size}, {*layer.stride}, {*layer.padding}
    _needs(not graph.flat and layer.in_channels == graph.shapes[value][0])
    _needs(all(len(each) == 1 for each in sides))
    kernel, stride, padding = (int(next(iter(each))) for each in sides)
    return _weighted(graph, layer, value, layer.out_channels, kernel, stride, padding)


def _linear(graph: _Graph, layer: nn.Linear, value: int) -> int:
    """Add a linear layer as a convolution whose kernel is as large as its input."""
    channels, size = graph.shapes[value]
    _needs(graph.flat and layer.in_features == channels * size**2)
    return _weighted(graph, layer, value, layer.out_features, size, 1, 0)


def _weighted(
    graph: _Graph, layer: nn.Conv2d | nn.Linear, value: int, channels: int, *numbers: int
) -> int:
    kernel, stride, padding = numbers
    shape = channels, convolved(graph.shapes[value][1], kernel, padding, stride)
    graph.parameters += [each for each in (layer.weight, layer.bias) if each is not None]
    biased = int(layer.bias is not None)
    return graph.add(_CONVOLUTION, value, channels, *numbers, biased, shape=shape)


def _norm(graph: _Graph, layer: "_Norm", value: int) -> int:
    shape, over_batch = graph.shapes[value], isinstance(layer, nn.BatchNorm2d)
    _needs(value > 0 and not graph.flat and (layer.weight is None) == (layer.bias is None))
    if isinstance(layer, nn.LayerNorm):
        _needs(layer.normalized_shape == (shape[0], shape[1], shape[1]))
        groups = 1
    elif isinstance(layer, nn.GroupNorm):
        _needs(layer.num_channels == shape[0])
        groups = layer.num_groups
    else:
        _needs(layer.num_features == shape[0] and (layer.training or layer.running_mean is None))
        groups = shape[0]
    # The engine's numbers: 0 for no parameters, 1 per channel, 2 per value of an image.
    parameters = 0 if layer.weight is None else 2 if isinstance(layer, nn.LayerNorm) else 1
    graph.parameters += [layer.weight, layer.bias] if parameters else []
    # A description has only integers, so it holds the bits of eps as a float64.
    (eps,) = struct.unpack("q", struct.pack("d", layer.eps))
    return graph.add(_NORM_ACT_POOL, value, groups, parameters, int(over_batch), eps, shape=shape)


def _activation(graph: _Graph, layer: nn.Module, value: int) -> int:
    return graph.extend(value, _ACTIVATION, _ACTIVATIONS[type(layer)])


def _pooling(graph: _Graph, layer: nn.AvgPool2d | nn.MaxPool2d, value: int) -> int:
    average, window = isinstance(layer, nn.AvgPool2d), layer.kernel_size
    channels, size = graph.shapes[value]
    _needs(isinstance(window, int) and layer.stride == window)
    assert isinstance(window, int)
    if window == 2 and size > 1:
        return graph.extend(value, _POOLING, POOLINGS.index("average" if average else "max"))
    # Larger averages, such as global pooling, are nodes of their own.
    _needs(average and value > 0 and not graph.flat and window <= size)
    return graph.add(_MEAN, value, window, shape=(channels, size // window))


_Norm = nn.GroupNorm | nn.LayerNorm | nn.BatchNorm2d
_Forward = Callable[[_Graph, Any, int], int]
_ACTIVATIONS = {kind: ACTIVATIONS.index(name) for name, kind in ACTIVATION_LAYERS.items()}
#: Function that adds a module of each type to the graph. Subclasses are not included, since their
#: forward may do anything.
_FORWARD: dict[type[nn.Module], _Forward] = {
    **dict.fromkeys((ConvNet, AlexNet, VGG11, LeNet), _chain("features", "", "classifier")),
    **dict.fromkeys((ResNet18, ResNet18_AP), _chain("first", "blocks", "pooling", "classifier")),
    MLP: _chain("", "layers"),
    ResidualBlock: _residual_block,
    nn.Sequential: _sequential,
    nn.Conv2d: _convolution,
    nn.Linear: _linear,
    **dict.fromkeys((nn.GroupNorm, nn.LayerNorm, nn.BatchNorm2d), _norm),
    **dict.fromkeys(_ACTIVATIONS, _activation),
    **dict.fromkeys((nn.AvgPool2d, nn.MaxPool2d), _pooling),
    nn.Flatten: _chain(""),
}
#: Attribute values that the engine assumes. A batch norm must have parameters, because the check
#: that batch norms are called in the order of the model compares parameters.
_USUAL: dict[type[nn.Module], dict[str, Any]] = {
    nn.Conv2d: {"groups": 1, "dilation": (1, 1), "padding_mode": "zeros"},
    nn.BatchNorm2d: {"affine": True},
    nn.LeakyReLU: {"negative_slope": LEAKY_SLOPE},
    nn.AvgPool2d: {"padding": 0, "ceil_mode": False, "divisor_override": None},
    nn.MaxPool2d: {"padding": 0, "ceil_mode": False, "dilation": 1, "return_indices": False},
    nn.Flatten: {"start_dim": 1, "end_dim": -1},
}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
