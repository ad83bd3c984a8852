"""The architectures of a search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trajmatch.errors import UserError
from trajmatch.nas import Architecture, NasConfig, choose


def config(**changes: Any) -> NasConfig:
    return NasConfig(file=Path("file"), out=Path("out"), **changes)


def test_the_whole_space_is_that_of_ftd() -> None:
    space = choose(config())
    assert len(space) == len({each.name for each in space}) == config().size == 720
    for axis, count in enumerate((4, 4, 3, 5, 3)):
        assert len({each[axis] for each in space}) == count


def test_every_architecture_fits_cifar() -> None:
    for each in choose(config()):
        spec = each.spec(3, 10, 32)  # which builds it, without memory
        assert {**spec, **each._asdict(), "name": "ConvNet"} == spec


def test_name() -> None:
    assert Architecture(3, 128, "relu", "instance", "average").name == (
        "d3-w128-relu-instance-average"
    )


def test_any_subset() -> None:
    chosen = choose(config(depths=(3,), widths=(32, 64), norms=("instance",), poolings=("max",)))
    assert [each[:3] for each in chosen] == [
        (3, width, activation)
        for width in (32, 64)
        for activation in ("sigmoid", "relu", "leaky_relu")
    ]


def test_drawn_by_the_seed_and_growing() -> None:
    space = choose(config())
    ten, eleven = choose(config(count=10)), choose(config(count=11))
    assert len(ten) == 10 and set(ten) < set(eleven) and len(eleven) == 11
    assert [each for each in space if each in ten] == ten
    assert choose(config(count=10, seed=1)) != ten
    assert choose(config(count=1000)) == space
    # What is drawn of a part is what is drawn of all, as far as it is in that part.
    half = choose(config(depths=(1, 2), count=5))
    assert set(half) <= {each for each in choose(config(count=60)) if each.depth < 3}


def test_images_that_are_too_small() -> None:
    with pytest.raises(UserError, match="d4-w32-relu-none-max does not fit images of 8 pixels"):
        Architecture(4, 32, "relu", "none", "max").spec(1, 3, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depths": (5,)}, "--depths should be one or more of 1, 2, 3, 4, each once, but is 5"),
        ({"norms": ("batch", "batch")}, "--norms should be one or more of .* but is batch, batch"),
        ({"poolings": ()}, "--poolings should be one or more of .* but is nothing"),
        ({"top": (5, 1)}, "--top should be one or more whole numbers above 1, each once"),
        ({"count": 0}, "--count should be at least 1, but is 0"),
        ({"count": 1}, "a ranking needs at least 2 architectures, but 1 is asked for"),
        ({"seeds": 0}, "--seeds should be at least 1, but is 0"),
        ({"real_epochs": 0}, "--real-epochs should be at least 1, but is 0"),
        ({"real_lr": float("nan")}, "--real-lr should be a number above 0, but is nan"),
        ({"proxy": "real"}, "--proxy should be one of distilled, random-real, k-center"),
        ({"top_by": "both"}, "--top-by should be one of real, proxy, but is 'both'"),
        ({"protocol": "ftd"}, "--protocol should be one of mtt, datm, ast, but is 'ftd'"),
        ({"k_center_store": Path("x")}, "--k-center-store is for --proxy k-center alone"),
    ],
)
def test_refuses_what_is_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config(**changes)
