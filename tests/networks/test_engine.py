"""Networks that the engine runs, and modified ones that it must leave to autograd."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from trajmatch import networks, ops, reference
from trajmatch.block import NORMS, Norm
from trajmatch.networks import ConvNet
from trajmatch.ops.student import runs_by_images

# Each makes something else of a network that the engine knows.
Change = Callable[[nn.Module], object]


def _swap_blocks(model: nn.Module) -> None:
    model.features[3], model.features[2] = model.features[2], model.features[3]


def _share_a_convolution(model: nn.Module) -> None:
    model.features[8] = model.features[4]


def _share_a_weight(model: nn.Module) -> None:
    model.features[8].weight = model.features[4].weight


def _grow(model: nn.Module) -> None:
    model.features[7] = nn.AvgPool2d(3, stride=2, padding=1)


def _own_forward(model: nn.Module) -> None:
    model.features[2].forward = torch.tanh  # type: ignore[method-assign]


class _Doubled(nn.ReLU):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def _doubled(model: nn.Module) -> None:
    model.features[2] = _Doubled()


def _dilated(model: nn.Module) -> None:
    model.features[4] = nn.Conv2d(4, 4, 3, padding=2, dilation=2)


def _grouped(model: nn.Module) -> None:
    model.features[4] = nn.Conv2d(4, 4, 3, padding=1, groups=2)


def _reflecting(model: nn.Module) -> None:
    model.features[4] = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")


def _another_slope(model: nn.Module) -> None:
    model.features[2] = nn.LeakyReLU(0.2)


def _weight_norm(model: nn.Module) -> None:
    nn.utils.parametrizations.weight_norm(model.features[4])


def _one_more(model: nn.Module) -> None:
    model.extra = nn.Parameter(torch.ones(3))  # type: ignore[assignment]


def _without_bias(model: nn.Module) -> None:
    model.classifier = nn.Linear(model.classifier.in_features, 5, bias=False)  # type: ignore[arg-type]


ELSEWHERE: dict[str, Change] = {
    "a shared convolution": _share_a_convolution,
    "a shared weight": _share_a_weight,
    "another pooling": _grow,
    "a forward of its own": _own_forward,
    "a subclass": _doubled,
    "dilation": _dilated,
    "groups": _grouped,
    "reflection": _reflecting,
    "another slope": _another_slope,
    "a parametrised weight": _weight_norm,
    "a parameter more": _one_more,
    "no bias at the end": _without_bias,
    "a hook": lambda model: model.features[0].register_forward_hook(lambda *_: None),
    "a hook before": lambda model: model.register_forward_pre_hook(lambda *_: None),
    "a hook behind": lambda model: model.features[4].register_full_backward_hook(lambda *_: None),
    "a frozen layer": lambda model: model.features[4].requires_grad_(False),
}
#: Rearranged, but of the same modules: these run on the engine too.
TAKEN: dict[str, Change] = {
    "another order": _swap_blocks,
    "a wider layer": lambda model: model.features.__setitem__(8, nn.Conv2d(4, 4, 5, padding=2)),
    "a norm of two groups": lambda model: model.features.__setitem__(5, nn.GroupNorm(2, 4)),
    "a norm without parameters": lambda model: model.features.__setitem__(
        5, nn.GroupNorm(4, 4, affine=False, eps=1e-3)
    ),
    "a convolution without bias": lambda model: model.features.__setitem__(
        4, nn.Conv2d(4, 4, 3, padding=1, bias=False)
    ),
    "no activation": lambda model: model.features.__delitem__(6),
}


@pytest.mark.parametrize("change", [*ELSEWHERE, *TAKEN])
def test_networks_that_look_like_the_papers(change: str) -> None:
    model = ConvNet(3, 5, 16, width=4, depth=3).double()
    {**ELSEWHERE, **TAKEN}[change](model)
    model.double()
    assert ops.engine_for(model) == ("engine" if change in TAKEN else "autograd")
    theta = networks.flat_parameters(model)
    images, labels = torch.randn(3, 3, 16, 16, dtype=torch.float64), torch.tensor([0, 4, 1])
    tangent = torch.randn_like(theta)
    value, grad = ops.gradient(model, theta, images, labels)
    found = ops.gradient_jvp(model, theta, images, labels, tangent)
    wanted = reference.gradient(model, theta, images, labels)
    exact = reference.gradient_jvp(model, theta, images, labels, tangent)
    for got, right in zip((value, grad, *found[:3]), (*wanted, *exact[:3]), strict=True):
        torch.testing.assert_close(got, right, rtol=1e-9, atol=1e-11)


def test_another_norm_is_another_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NORMS, "group8", Norm(8))
    with pytest.raises(ValueError, match="width to be a multiple of 8 for norm='group8'"):
        networks.specify("vgg11:group8,width=4", 3, 5, 32)
    model = networks.build(networks.specify("convnet:group8,width=16,depth=2", 3, 5, 8)).double()
    assert ops.engine_for(model) == "engine"
    theta = networks.flat_parameters(model)
    images, labels = torch.randn(3, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 4, 1])
    found = ops.gradient(model, theta, images, labels)
    wanted = reference.gradient(model, theta, images, labels)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("text", "size", "few"),
    [
        ("convnet:width=4,depth=2", 8, True),
        ("vgg11:width=2,norm=none", 32, True),
        ("vgg11:batch,width=2", 32, False),
        ("convnet:batch,width=4,depth=2", 8, False),
        ("resnet18:width=4", 16, False),
        ("lenet", 20, False),
    ],
)
def test_chains_go_through_the_cpu_engine_a_few_images_at_a_time(
    text: str, size: int, few: bool
) -> None:
    model = networks.build(networks.specify(text, 3, 5, size))
    assert runs_by_images(model) is few
    assert not runs_by_images(nn.Sequential(model))  # on autograd


@pytest.mark.parametrize(
    "divided", [{"micro_batch": 2}, {"shards": SimpleNamespace(size=2, rank=0)}]
)
def test_the_batch_of_a_batch_norm_is_not_divided(divided: dict[str, Any]) -> None:
    model = networks.build(networks.specify("convnet:batch,width=4,depth=1", 3, 5, 8))
    assert ops.engine_for(model) == "engine"
    with pytest.raises(ValueError, match="be None for a network that mixes the images of a batch"):
        ops.unroll(
            model,
            networks.flat_parameters(model),
            torch.randn(4, 3, 8, 8),
            torch.arange(4),
            torch.tensor(0.1),
            torch.arange(4).repeat(2, 1),
            **divided,
        )
