"""The networks beside the ConvNet: shapes, numbers of parameters, initialisation."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

from trajmatch import networks
from trajmatch.block import NORMS, POOLINGS

#: Narrow enough to be quick; the widths of the papers are tested without running the networks.
NARROW = ["alexnet:width=4", "vgg11:width=4", "resnet18:width=4", "resnet18_ap:width=4"]


def on_meta(text: str, *sizes: int) -> nn.Module:
    with torch.device("meta"):
        return networks.build(networks.specify(text, *sizes))


@pytest.mark.parametrize(
    ("text", "sizes", "parameters"),
    [
        # Channels, classes, pixels. A 3x3 convolution from a to b channels has 9ab + b, a norm 2b.
        # AlexNet: 9,728 + 614,592 + 442,624 + 442,560 + 331,968, then (192 * 16 + 1) * 10.
        ("alexnet", (3, 10, 32), 1_872_202),
        ("alexnet", (1, 10, 28), 1_872_202 - 2 * 25 * 128),
        ("alexnet", (3, 200, 64), 1_841_472 + 3073 * 200),
        # VGG11: 9,220,480 in convolutions, 5,504 in norms, 513 for each class.
        ("vgg11", (3, 10, 32), 9_231_114),
        ("vgg11:batch", (3, 10, 32), 9_231_114),
        ("vgg11:none", (3, 10, 32), 9_231_114 - 5_504),
        ("vgg11", (3, 200, 64), 9_225_984 + 513 * 200),
        # ResNet18: the well-known number for CIFAR; average pooling keeps 16 pixels for the end.
        ("resnet18:batch", (3, 10, 32), 11_173_962),
        ("resnet18", (3, 10, 32), 11_173_962),
        ("resnet18_ap", (3, 10, 32), 11_173_962 + 15 * 512 * 10),
        ("resnet18", (3, 200, 64), 11_173_962 + 513 * 190),
        # LeNet-5: 61,706 for one channel.
        ("lenet", (1, 10, 28), 61_706),
        ("lenet", (3, 10, 32), 61_706 + 2 * 25 * 6),
        ("lenet", (3, 200, 64), 61_706 + 2 * 25 * 6 + 85 * 190),
        # MLP: two hidden layers of 128, one for large images.
        ("mlp", (3, 10, 32), 3073 * 128 + 129 * 128 + 129 * 10),
        ("mlp", (1, 10, 28), 785 * 128 + 129 * 128 + 129 * 10),
        ("mlp", (3, 200, 64), 12_289 * 128 + 129 * 200),
        # The papers' ConvNets, by name and by the size of the images.
        ("convnet", (3, 10, 32), 320_010),
        ("ConvNetD3", (3, 100, 32), 504_420),
        ("convnet", (3, 200, 64), 857_160),
        ("convnet-d4", (3, 200, 64), 857_160),
        ("convnet_d3", (3, 200, 64), 1_938_120),
        ("convnet", (3, 10, 128), 615_690),
        ("convnetd5:batch", (3, 10, 128), 615_690),
    ],
)
def test_parameter_counts(text: str, sizes: tuple[int, ...], parameters: int) -> None:
    assert networks.num_parameters(on_meta(text, *sizes)) == parameters


@pytest.mark.parametrize("text", [*NARROW, "lenet", "mlp:width=4", "convnet:width=4"])
@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32), (3, 64), (1, 128)])
def test_every_size_and_number_of_channels(text: str, channels: int, size: int) -> None:
    model = networks.build(networks.specify(text, channels, 5, size))
    assert model(torch.zeros(2, channels, size, size)).shape == (2, 5)


@pytest.mark.parametrize(
    ("text", "norm"),
    list(itertools.product(["vgg11", "resnet18", "resnet18_ap", "convnet"], NORMS)),
)
def test_every_norm(text: str, norm: str) -> None:
    spec = networks.specify(f"{text}:{norm},width=4", 3, 5, 32)
    assert spec["norm"] == norm
    model = networks.build(spec)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 5)
    norms = [m for m in model.modules() if isinstance(m, nn.GroupNorm)]
    if norm in ("instance", "group"):
        assert all(m.num_groups == (m.num_channels if norm == "instance" else 4) for m in norms)
    kinds = {"batch": nn.BatchNorm2d, "layer": nn.LayerNorm}
    for kind, layer in kinds.items():
        assert any(isinstance(m, layer) for m in model.modules()) == (norm == kind)
    assert bool(norms) == (norm in ("instance", "group"))
    assert (networks.num_buffers(model) > 0) == (norm == "batch")


@pytest.mark.parametrize(
    "text",
    [
        "resnet18_ap:layer,width=4",
        "alexnet:width=4",
        "lenet",
        *(f"convnet:{norm},width=4,depth=2" for norm in NORMS),
        *(f"convnet:width=4,activation=leaky_relu,pooling={pooling}" for pooling in POOLINGS),
    ],
)
def test_spec_builds_the_same_network(text: str) -> None:
    model = networks.build(networks.specify(text, 1, 5, 28)).eval()
    twin = networks.build(model.spec()).eval()
    assert type(twin) is type(model) and twin.spec() == model.spec()
    assert networks.engine_description(twin) == networks.engine_description(model)
    networks.load_flat_parameters(twin, networks.flat_parameters(model))
    images = torch.randn(2, 1, 28, 28)
    assert torch.equal(twin(images), model(images))


@pytest.mark.parametrize("text", [*NARROW, "vgg11:batch,width=4", "lenet", "mlp"])
def test_initialise_draws_the_default_of_every_layer(text: str) -> None:
    model = networks.build(networks.specify(text, 3, 5, 32))
    first = networks.flat_parameters(networks.initialise(model, torch.Generator().manual_seed(1)))
    again = networks.flat_parameters(networks.initialise(model, torch.Generator().manual_seed(1)))
    assert torch.equal(first, again)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = module.weight[0].numel() ** -0.5
            assert 0.8 * bound < module.weight.abs().max() <= bound
        elif isinstance(module, nn.GroupNorm | nn.BatchNorm2d):
            assert torch.equal(module.weight, torch.ones_like(module.weight))


def test_buffers_as_one_vector() -> None:
    model = networks.build(networks.specify("convnet:batch,width=4,depth=1", 3, 5, 8))
    assert networks.num_buffers(model) == 4 + 4 + 1  # mean, variance, count of batches
    model(torch.randn(6, 3, 8, 8))
    flat = networks.flat_buffers(model)
    assert flat[-1] == 1
    twin = networks.build(model.spec())
    networks.load_flat_buffers(twin, flat)
    norm = model.features[1]
    assert torch.equal(twin.features[1].running_var, norm.running_var)
    assert twin.features[1].num_batches_tracked == 1
    assert networks.flat_buffers(networks.initialise(twin, torch.Generator()))[-1] == 0
    with pytest.raises(ValueError, match=r"to have shape \[9\], but got \[3\]"):
        networks.load_flat_buffers(model, torch.zeros(3))
    assert networks.flat_buffers(nn.Linear(2, 2)).shape == (0,)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("resnet18:batch,width=8", {"name": "ResNet18", "norm": "batch", "width": 8}),
        ("ResNet18-AP", {"name": "ResNet18_AP", "norm": "instance", "width": 64}),
        ("convnet:width=32,depth=2,activation=sigmoid", {"depth": 2, "activation": "sigmoid"}),
        ("convnet", {"name": "ConvNet", "depth": 3, "norm": "instance"}),
    ],
)
def test_names(text: str, options: dict[str, Any]) -> None:
    spec = networks.specify(text, 3, 10, 32)
    assert spec.items() >= options.items()
    assert spec.items() >= {"in_channels": 3, "num_classes": 10, "image_size": 32}.items()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resnt18", r"one of convnet, .* but got 'resnt18' \(did you mean resnet18\?\)"),
        ("resnt18:batch", r"did you mean resnet18\?"),
        ("no_such_package.module:make", "there is no package 'no_such_package' to import"),
        ("resnet18:batsh", "expected norm to be one of .* but got 'batsh'"),
        ("vgg11:width=six", "VGG11"),
        ("lenet:batch", "LeNet does not accept all of these options: norm"),
        ("convnet:depht=3", "ConvNet does not accept all of these options: depht"),
        ("vgg11:batch,layer", "pairs without repeats, joined by commas, but got 'layer'"),
        ("vgg11:", "joined by commas, but got ''"),
        ("convnetd4:depth=3", "the depth is given twice"),
        ("alexnet:width=5", "expected width to be even, but got 5"),
        ("vgg11:group,width=6", "expected width to be a multiple of 4 .* but got 6"),
        ("resnet18:width=0", "expected width to be at least 1, but got 0"),
    ],
)
def test_wrong_names(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        networks.specify(text, 3, 10, 32)


@pytest.mark.parametrize("text", ["alexnet", "vgg11", "resnet18", "lenet"])
def test_images_that_are_too_small(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected image_size to be large .* but got 4"):
        networks.specify(text, 3, 10, 4)
