"""Experts as lines between waypoints, and the commands that read such stores."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trajmatch import networks
from trajmatch.cli.main import main
from trajmatch.distill.config import DistillConfig
from trajmatch.distill.loop import distill
from trajmatch.errors import UserError
from trajmatch.experts import ExpertConfig, Store, train_experts
from trajmatch.experts.store_maintenance import convexify, merge, trim, verify
from trajmatch.experts.waypoints import convexified

EPOCHS = 6
SMALL = {"num_experts": 2, "batch_size": 18, "width": 4, "depth": 2, "workers": 1}


def train(out: Path, data: str, **settings: Any) -> Store:
    return train_experts(
        ExpertConfig(out=out, data=data, **{**SMALL, "epochs": EPOCHS, **settings})
    )


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory, tiny_data: str) -> tuple[Store, Store]:
    """A store, and the same with waypoints 0, 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("stores")
    return train(folder / "store", tiny_data), convexify(folder / "store", folder / "lines", "2,4")


def on_lines(points: list[Tensor], waypoints: tuple[int, ...]) -> list[Tensor]:
    """One parameter tensor on lines, by the definition, in float64."""
    points = [each.double().clone() for each in points]
    for epoch in waypoints[1:-1]:
        points[epoch] = points[epoch] / 2 + (points[epoch - 1] + points[epoch + 1]) / 4
    points[-1] = points[-1] / 2 + (points[-2] + points[-3]) / 4
    found = [points[0]]
    for first, last in pairwise(waypoints):
        steps = [(points[e] - points[e - 1]).norm() for e in range(first + 1, last + 1)]
        for gone in range(1, last - first + 1):
            share = sum(steps[:gone]) / sum(steps) if any(steps) else 1.0
            found.append(points[first] + share * (points[last] - points[first]))
    return found


def test_each_parameter_tensor_is_on_its_line(stores: tuple[Store, Store]) -> None:
    store, lines = stores
    shapes = networks.parameter_shapes(networks.build(store.manifest["network"]))
    for expert in range(2):
        parts = [
            networks.split(store.snapshot(expert, epoch), shapes) for epoch in range(EPOCHS + 1)
        ]
        found = [
            networks.split(lines.snapshot(expert, epoch), shapes) for epoch in range(EPOCHS + 1)
        ]
        for name in shapes:
            wanted = on_lines([each[name] for each in parts], (0, 2, 4, 6))
            for epoch, each in enumerate(wanted):
                torch.testing.assert_close(found[epoch][name].double(), each, rtol=0, atol=2e-7)
    assert torch.equal(lines.snapshot(0, 0), store.snapshot(0, 0))


def test_a_tensor_that_does_not_move_is_fine() -> None:
    points, shares = convexified(torch.ones(4, 3), [1], [1, 2])
    assert points.eq(1).all() and points.shape == (3, 3)
    assert shares.tolist() == [[0, 0], [1, 1], [1, 1], [1, 1]]


def test_fifty_epochs_become_twelve_times_smaller(
    stores: tuple[Store, Store], tmp_path: Path
) -> None:
    wide = {**stores[0].manifest["network"], "width": 32}
    numbers, snapshots = networks.num_parameters(networks.build(wide)), list(range(51))
    manifest = {**stores[0].manifest, "network": wide, "snapshots": snapshots, "num_experts": 1}
    store = Store.create(tmp_path / "store", manifest)
    store.write_expert(0, torch.randn(51, numbers).cumsum(0), {})
    lines = convexify(store.path, tmp_path / "lines")
    sizes = [each.expert_path(0).stat().st_size for each in (store, lines)]
    assert 12 < sizes[0] / sizes[1] < 51 / 4


def test_the_commands_take_a_store_of_lines(
    stores: tuple[Store, Store], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, lines = stores
    assert {verdict.status for verdict in verify(lines.path)} == {"ok"}
    assert main(["store", "ls", str(lines.path)]) == 0
    assert "between epochs 0, 2, 4, 6" in capsys.readouterr().out
    small = trim(lines.path, tmp_path / "small", keep="1,3", experts="1")
    assert small.snapshots_kept == [1, 3, 6]
    for epoch in small.snapshots_kept:
        assert torch.equal(small.snapshot(0, epoch), lines.snapshot(1, epoch))
    both = merge([lines.path, trim(lines.path, tmp_path / "0", experts="0").path], tmp_path / "2")
    assert both.identity == lines.identity
    with pytest.raises(UserError, match="cannot be merged, because their waypoints"):
        merge([lines.path, store.path], tmp_path / "3")
    again = {**SMALL, "data": store.manifest["data"], "epochs": EPOCHS, "resume": True}
    with pytest.raises(UserError, match="was made by `trajmatch store`"):
        train_experts(ExpertConfig(out=lines.path, **again))
    run: dict[str, Any] = {"iterations": 1, "student_steps": 1, "expert_epochs": 1}
    of_store, of_lines = (
        distill(DistillConfig(experts=each.path, out=tmp_path / f"{each.path.name}.d", **run))
        for each in stores
    )
    assert not torch.equal(of_store.images, of_lines.images)
    assert main(["convert", str(lines.path), "--out", str(tmp_path / "theirs")]) == 0


def test_damage_is_found(stores: tuple[Store, Store], tmp_path: Path) -> None:
    shutil.copytree(stores[1].path, tmp_path / "lines")
    file = Store.open(tmp_path / "lines").expert_path(0)
    content = bytearray(file.read_bytes())
    for place in (-1, len(content) // 2):
        content[place] ^= 1
        file.write_bytes(content)
        assert "damaged" in [verdict.status for verdict in verify(tmp_path / "lines")]
        content[place] ^= 1


@pytest.mark.parametrize(
    ("settings", "waypoints", "message"),
    [
        ({}, "6,25", "--waypoints 6,25 should list epochs from 0 to 6 .*, but contains '25'"),
        ({}, "two", "but contains 'two'"),
        ({"epochs": 1}, "1", "does not keep epoch 2"),
        ({"keep": "0-2"}, "2", "does not keep epoch 3"),
        ({"until_epoch": 3}, "2", "trained for the first 3 of 6 epochs"),
        ({"norm": "batch"}, "2", "has buffers"),
    ],
)
def test_stores_that_cannot_be_convexified(
    tiny_data: str, tmp_path: Path, settings: dict[str, Any], waypoints: str, message: str
) -> None:
    store = train(tmp_path / "store", tiny_data, **{"num_experts": 1, **settings})
    with pytest.raises(UserError, match=message):
        convexify(store.path, tmp_path / "lines", waypoints)
    assert not (tmp_path / "lines").exists()


def test_lines_are_not_convexified_again(stores: tuple[Store, Store], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="already convexified"):
        convexify(stores[1].path, tmp_path / "again", "2")
