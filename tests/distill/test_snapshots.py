"""Snapshots of the images, taken while they are distilled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from stand_ins import Interrupter

from trajmatch import artifact, files, snapshots
from trajmatch.distill import DistillConfig, distill
from trajmatch.distill.image_snapshots import ImageSnapshots, due_iterations
from trajmatch.distill.problem import prepare
from trajmatch.errors import UserError

Configure = Callable[..., DistillConfig]


def test_they_are_closer_together_at_first_and_have_both_ends() -> None:
    assert sorted(due_iterations(10, 1000)) == [
        *(0, 10, 40, 90, 160, 250, 360, 490, 640, 810, 1000)
    ]
    assert sorted(due_iterations(10, 3)) == [0, 1, 2, 3]
    assert due_iterations(0, 1000) == frozenset()


@pytest.mark.parametrize("zca", [False, True])
def test_a_run_leaves_the_pixels_of_its_beginning_and_its_end(
    configure: Configure, data: str, tmp_path, zca
) -> None:
    from .conftest import write_store

    config = configure(snapshots=3, ema=0.5)
    if zca:
        config = replace(config, experts=write_store(tmp_path / "whitened", data, zca=True))
    result = distill(config)
    found = snapshots.load(config.snapshots_path)
    assert found.iterations == (0, 2, 5, 10)
    assert found.images.shape == (4, 6, 1, 8, 8)
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert found.identity == {**result.recipe, "seed": result.seed}
    preprocessing = result.preprocessing
    first = prepare(config).initial_set().images
    for index, images in ((0, first), (-1, result.images)):
        expected = preprocessing.invert(images)
        torch.testing.assert_close(found.images[index].float(), expected, rtol=1e-3, atol=1e-3)


def test_none_are_taken_where_none_are_asked_for(configure: Configure) -> None:
    config = configure(snapshots=0)
    distill(config)
    assert not config.snapshots_path.exists()


def test_they_do_not_change_the_result(configure: Configure, tmp_path) -> None:
    without = configure(out=tmp_path / "without", snapshots=0)
    distill(configure())
    distill(without)
    assert configure().out.read_bytes() == without.out.read_bytes()


@pytest.mark.parametrize("interrupt_at", [1, 3, 5, 9])
def test_an_interrupted_run_leaves_the_same_file(
    configure: Configure, tmp_path, interrupt_at
) -> None:
    whole = configure(out=tmp_path / "whole" / "d", checkpoint_every=4, snapshots=6)
    part = replace(whole, out=tmp_path / "part" / "d")
    distill(whole)
    with pytest.raises(KeyboardInterrupt):
        distill(part, Interrupter(interrupt_at))
    distill(replace(part, resume=True))
    assert part.snapshots_path.read_bytes() == whole.snapshots_path.read_bytes()


def test_a_file_deleted_on_the_way_stops_nothing(configure: Configure, tmp_path) -> None:
    config = configure(snapshots=5)

    class Deleter:
        def update(self, done: int, **numbers: float) -> None:
            if done == 3:
                config.snapshots_path.unlink()

    distill(config, Deleter())
    assert snapshots.load(config.snapshots_path).iterations == (4, 7, 10)


@pytest.mark.parametrize("content", [b"", b"no tensors", None])
def test_a_damaged_file_begins_anew(configure: Configure, tmp_path, content) -> None:
    """It is there to be looked at: a run goes on from its checkpoint, to the same bytes."""
    whole = configure(out=tmp_path / "whole" / "d", checkpoint_every=1, snapshots=5)
    part = replace(whole, out=tmp_path / "part" / "d")
    distill(whole)

    def damage() -> None:
        damaged = part.snapshots_path.read_bytes()
        damaged = damaged[:-1] + bytes([damaged[-1] ^ 1]) if content is None else content
        part.snapshots_path.write_bytes(damaged)

    class Damager:
        def update(self, done: int, **numbers: float) -> None:
            if done == 5:
                damage()  # while the run is under way
            if done == 9:
                raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        pytest.warns(UserWarning, match="starting the snapshots of this run from scratch"),
    ):
        distill(part, Damager())
    assert snapshots.load(part.snapshots_path).iterations == (7,)
    damage()
    with pytest.warns(UserWarning, match="starting the snapshots of this run from scratch"):
        distill(replace(part, resume=True))
    assert part.out.read_bytes() == whole.out.read_bytes()
    assert snapshots.load(part.snapshots_path).iterations == (10,)


def test_those_of_another_run_are_refused(configure: Configure) -> None:
    config = configure()
    with pytest.raises(KeyboardInterrupt):
        distill(config, Interrupter(5))
    found = snapshots.load(config.snapshots_path)
    snapshots.save(config.snapshots_path, replace(found, identity={**found.identity, "seed": 9}))
    with pytest.raises(UserError, match="made with seed = 9"):
        distill(replace(config, resume=True))


def test_an_earlier_file_is_refused_without_resume(configure: Configure) -> None:
    config = configure()
    config.snapshots_path.write_text("mine")
    with pytest.raises(UserError, match=r"snapshots\.safetensors already exists"):
        distill(config)
    assert config.snapshots_path.read_text() == "mine"
    distill(replace(config, snapshots=0))


def test_large_sets_have_a_part_of_each_class(configure: Configure, monkeypatch) -> None:
    from trajmatch.distill import image_snapshots

    config = configure(ipc=4, iterations=1)
    state_of = prepare(config).initial_state
    for limit, kept in ((2**20, 4), (3 * 64 * 3, 3), (1, 1)):
        monkeypatch.setattr(image_snapshots, "VALUES", limit)
        config.snapshots_path.unlink(missing_ok=True)
        ImageSnapshots(prepare(config), state_of())
        found = snapshots.load(config.snapshots_path)
        assert found.labels.tolist() == [k for k in range(3) for _ in range(kept)]
        first = artifact_pixels(config, [4 * k + n for k in range(3) for n in range(kept)])
        torch.testing.assert_close(found.images[0].float(), first, rtol=1e-3, atol=1e-3)


def artifact_pixels(config: DistillConfig, rows: list[int]) -> torch.Tensor:
    problem = prepare(config)
    return problem.training.preprocessing.invert(problem.initial_set().images[rows])


@pytest.mark.parametrize(
    "change",
    [
        {"iterations": [0, 2]},
        {"iterations": [0, 2, 2, 3]},
        {"iterations": [0, 1, 2, True]},
        {"iterations": None},
        {"identity": []},
        {"format": "trajmatch artifact"},
        {"format_version": 2},
    ],
)
def test_a_wrong_description_is_refused(configure: Configure, change) -> None:
    config = configure(snapshots=3)
    distill(config)
    tensors, metadata = files.load_tensors(config.snapshots_path)
    files.save_tensors(config.snapshots_path, tensors, {**metadata, **change})
    with pytest.raises(UserError, match=str(config.snapshots_path)):
        snapshots.load(config.snapshots_path)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("images", torch.zeros(4, 6, 1, 8, 8)),
        ("images", torch.zeros(4, 6, 8, 8, dtype=torch.float16)),
        ("labels", torch.zeros(5, dtype=torch.int64)),
        ("labels", torch.zeros(6)),
    ],
)
def test_wrong_tensors_are_refused(configure: Configure, name, tensor) -> None:
    config = configure(snapshots=3)
    distill(config)
    tensors, metadata = files.load_tensors(config.snapshots_path)
    files.save_tensors(config.snapshots_path, {**tensors, name: tensor}, metadata)
    with pytest.raises(UserError, match="is damaged"):
        snapshots.load(config.snapshots_path)


def test_an_artifact_is_no_snapshot_and_the_other_way_round(configure: Configure) -> None:
    config = configure()
    distill(config)
    with pytest.raises(UserError, match="does not hold snapshots"):
        snapshots.load(config.out)
    with pytest.raises(UserError, match="its format is 'trajmatch snapshots'"):
        artifact.load(config.snapshots_path)


def test_values_beyond_half_precision_stay_finite() -> None:
    none = snapshots.Snapshots((), torch.zeros(0, 1, 1, 1, 2).half(), torch.tensor([0]), {})
    one = none.with_images(0, torch.tensor([1e9, -1e9]).view(1, 1, 1, 2))
    assert one.images.flatten().tolist() == [65504.0, -65504.0]
