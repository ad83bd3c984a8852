"""Networks that cannot be students, and those from elsewhere."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trajmatch import networks
from trajmatch.networks.differentiable import check_twice_differentiable

SHAPE = (1, 6, 6)


class Once(torch.autograd.Function):
    """Squares, with a backward pass that says that it has no derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, above: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * above


class Silent(Once):
    """The same, with a backward pass that drops the derivative without a word."""

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> Tensor:
        return (2 * ctx.saved_tensors[0] * above).detach()


class Square(nn.Module):
    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function.apply(x)


class Inside(nn.Module):
    """Its layers are fine; what its own forward does is not."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(36, 4)

    def forward(self, x: Tensor) -> Tensor:
        return Once.apply(self.layer(x))


def around(*layers: nn.Module) -> nn.Sequential:
    """Layers in the middle of a network with one layer that works in place."""
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1),
        nn.ReLU(inplace=True),
        *layers,
        nn.Flatten(),
        nn.Linear(72, 4),
    )


@pytest.mark.parametrize("function", [Once, Silent])
def test_the_offending_layer_is_named(function: type[torch.autograd.Function]) -> None:
    model = around(nn.Sequential(nn.BatchNorm2d(2), Square(function)))
    obstacles = {layer.name: layer.obstacle for layer in networks.examine(model, SHAPE)}
    assert obstacles.pop("2.1") is not None
    assert set(obstacles) == {"0", "1", "2.0", "3", "4"}
    assert not any(obstacles.values())
    with pytest.raises(ValueError, match=r"layer 2\.1 \(Square\) of Sequential is not: "):
        check_twice_differentiable(model, SHAPE)


def test_an_operator_of_torch_without_a_second_derivative() -> None:
    with pytest.raises(ValueError, match=r"2 \(Hardsigmoid\) of .* is not: derivative for aten::"):
        check_twice_differentiable(around(nn.Hardsigmoid()), SHAPE)


def test_a_forward_is_to_blame_where_no_layer_is() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Sequential(Inside(), nn.Tanh()), nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"layer 1\.0 \(Inside\) of Sequential is not"):
        check_twice_differentiable(model, SHAPE)
    with pytest.raises(ValueError, match="the forward method of Inside is not"):
        check_twice_differentiable(Inside(), (36,))


@pytest.mark.parametrize(
    "layer", [nn.MaxPool2d(1), nn.GELU(), nn.BatchNorm2d(2), nn.Dropout(0.0), nn.Identity()]
)
def test_what_is_twice_differentiable_passes(layer: nn.Module) -> None:
    model = around(layer)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    state = torch.get_rng_state()
    check_twice_differentiable(model, SHAPE)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())


@pytest.mark.parametrize("text", ["alexnet:width=32", "vgg11:width=16", "resnet18:width=8"])
def test_millions_of_kinks_are_no_obstacle(text: str) -> None:
    # Small numbers, equal numbers in a pooling window, and inputs of a ReLU that change sign.
    model = networks.build(networks.specify(text, 3, 10, 32))
    assert not any(layer.obstacle for layer in networks.examine(model, (3, 32, 32)))


def test_randomness_is_named() -> None:
    model = around(nn.Dropout2d(0.5))
    with pytest.raises(ValueError, match=r"Sequential draws random numbers \(in 2, a Dropout2d\)"):
        check_twice_differentiable(model, SHAPE)
    check_twice_differentiable(model.eval(), SHAPE)


def test_images_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"Sequential does not run on images of shape \[1, 5, 5\]"):
        check_twice_differentiable(around(), (1, 5, 5))


# --- networks from elsewhere


@pytest.fixture
def functions(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A user's module with functions that make networks."""

    def make(in_channels: int, num_classes: int, image_size: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes))

    def failing(**sizes: int) -> nn.Module:
        raise IndexError("layer 7")

    module = ModuleType("my_networks")
    module.__spec__ = sys.__spec__  # what find_spec looks at
    module.make = make
    module.rough = lambda **sizes: nn.Sequential(make(**sizes), nn.Hardsigmoid())
    module.random = lambda **sizes: nn.Sequential(nn.Dropout(), make(**sizes))
    module.wide = lambda **sizes: make(**{**sizes, "num_classes": 7})
    module.text = lambda **sizes: "a network"
    module.stubborn = lambda: None
    module.failing = failing
    module.nothing = lambda **sizes: None
    module.double = lambda **sizes: make(**sizes).double()
    monkeypatch.setitem(sys.modules, "my_networks", module)
    return module


def of_function(name: str) -> nn.Module:
    return networks.build(networks.specify(f"my_networks:{name}", 1, 3, 6))


def test_a_users_function(functions: ModuleType) -> None:
    model = of_function("make")
    spec = {"name": "my_networks:make", "in_channels": 1, "num_classes": 3, "image_size": 6}
    assert model.spec() == spec
    networks.check_student(model)
    networks.check_runs(spec)
    assert model(torch.zeros(2, 1, 6, 6)).shape == (2, 3)
    drawn = [
        networks.flat_parameters(networks.initialise(model, torch.Generator().manual_seed(seed)))
        for seed in (1, 1, 2)
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rough", r"layer module\.1 \(Hardsigmoid\) of my_networks:rough is not"),
        ("random", r"External draws random numbers \(in module\.0, a Dropout\)"),
        ("wide", r"my_networks:wide: expected logits of shape \[3, 3\], but got \[3, 7\]"),
        ("text", "to return a torch.nn.Module with parameters, but got a str"),
        ("stubborn", "called with in_channels, num_classes and image_size, failed: TypeError"),
        ("failing", r"failed: IndexError: layer 7 \(.*test_differentiable\.py, line \d+\)"),
        ("nothing", "with parameters, but got None"),
        ("double", r"to be float32, but got float64; return the network with \.float\(\)"),
        ("missing", "the module my_networks .* has no 'missing'"),
    ],
)
def test_functions_that_do_not_fit(functions: ModuleType, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        networks.check_student(of_function(name))


def test_what_is_only_tested_need_not_be_twice_differentiable(functions: ModuleType) -> None:
    networks.check_runs(of_function("rough").spec())
    networks.check_runs(of_function("random").spec())
    with pytest.raises(ValueError, match="expected logits of shape"):
        networks.check_runs(of_function("wide").spec())


def test_a_network_of_torchvision() -> None:
    model = networks.build_student(networks.specify("torchvision:squeezenet1_1", 1, 3, 32))
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 3)
    assert model.module.features[0].in_channels == 1
    with pytest.warns(
        UserWarning, match=r"squeezenet1_1 .* without its layers classifier\.0 \(Dro"
    ):
        networks.check_student(model)
    with pytest.raises(ValueError, match=r"but got 'resnet19' \(did you mean resnet18\?\)"):
        networks.build(networks.specify("torchvision:resnet19", 3, 10, 32))


def random_layers(model: nn.Module) -> dict[str, float]:
    """The layers that draw random numbers, with their probabilities."""
    return {
        f"{name.removeprefix('module.')} ({type(module).__name__})": module.p
        for name, module in model.named_modules()
        if type(module).__name__ in ("Dropout", "StochasticDepth") and module.p > 0
    }


@pytest.mark.parametrize("name", ["squeezenet1_1", "convnext_tiny", "resnet18"])
def test_students_alone_are_without_dropout_and_stochastic_depth(name: str) -> None:
    spec = networks.specify(f"torchvision:{name}", 3, 3, 64)
    student, as_it_is = networks.build_student(spec), networks.build(spec)
    assert student.switched_off == (*random_layers(as_it_is),)
    assert not random_layers(student)
    assert as_it_is.switched_off == ()
    assert bool(student.switched_off) == (name != "resnet18")
