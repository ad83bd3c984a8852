"""The store: what is refused, what a fingerprint covers, what a reader gets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trajmatch import files
from trajmatch.data import load_dataset, zca
from trajmatch.errors import UserError
from trajmatch.experts import ExpertConfig, Store, train_experts

MakeConfig = Callable[..., ExpertConfig]

MANIFEST: dict[str, Any] = {
    "data": None,
    "dataset": {"name": "toy", "fingerprint": "f", "class_names": ["a"], "shape": [1, 8, 8]},
    "holdout": {"fraction": 0.0, "seed": 0, "training_fingerprint": "f"},
    "preprocessing": {"mean": [0.5], "std": [0.25]},
    "network": {"name": "ConvNet", "width": 4, "depth": 1},
    "recipe": {"lr": 0.01},
    "seed": 0,
    "num_experts": 2,
    "dtype": "float32",
    "snapshots": [0, 1, 2],
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two experts of five parameters; row ``t`` of expert ``i`` is filled with ``10 i + t``."""
    store = Store.create(tmp_path / "store", MANIFEST)
    for expert in range(2):
        rows = (10.0 * expert + torch.arange(3.0))[:, None].expand(3, 5)
        store.write_expert(expert, rows, {"train_loss": [2.0, 1.0]})
    return store


def rewrite(store: Store, **changes: Any) -> None:
    files.write_json(store.path / "store.json", {**store.manifest, **changes})


@pytest.fixture
def whitened(tmp_path: Path) -> Store:
    """A store without experts whose images are whitened."""
    images = torch.randint(0, 256, (30, 1, 8, 8)).to(torch.uint8)
    manifest = {**MANIFEST, "preprocessing": zca.spec(), "num_experts": 1}
    return Store.create(tmp_path / "whitened", manifest, zca.fit(images))


# --- reading


def test_snapshot_is_the_row_of_the_epoch(store: Store) -> None:
    opened = Store.open(store.path)
    assert torch.equal(opened.snapshot(1, 2), torch.full((5,), 12.0))
    assert opened.snapshot(0, 0).dtype == torch.float32
    assert opened.metrics(1) == {"train_loss": [2.0, 1.0]}


def test_snapshot_is_the_readers_own(store: Store) -> None:
    store.snapshot(0, 1).fill_(7)
    assert torch.equal(store.snapshot(0, 1), torch.ones(5))


def test_snapshot_follows_the_epochs_kept(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "sparse", {**MANIFEST, "num_experts": 1, "snapshots": [0, 4]})
    store.write_expert(0, torch.tensor([[0.0], [4.0]]), {})
    assert store.snapshot(0, 4).item() == 4
    with pytest.raises(UserError, match="epochs 0, 4, but 2 was asked for"):
        store.snapshot(0, 2)


@pytest.mark.parametrize(("expert", "epoch"), [(2, 0), (-1, 0), (0, 3), (0, -1)])
def test_no_such_snapshot(store: Store, expert: int, epoch: int) -> None:
    with pytest.raises(UserError, match="was asked for"):
        store.snapshot(expert, epoch)


# --- writing


def test_write_refuses_what_is_not_finite(store: Store) -> None:
    before = store.expert_path(0).read_bytes()
    with pytest.raises(UserError, match="not finite"):
        store.write_expert(0, torch.full((3, 5), torch.nan), {})
    assert store.expert_path(0).read_bytes() == before


# --- opening


def test_missing_expert(store: Store) -> None:
    store.expert_path(1).unlink()
    with pytest.raises(
        UserError, match=r"lacks 1 of 2 experts \(the first is number 1\).*--resume"
    ):
        Store.open(store.path)
    assert Store.open(store.path, complete=False).missing() == [1]


@pytest.mark.parametrize("keep", [0, 4, 60, -1])
def test_truncated_expert(store: Store, keep: int) -> None:
    path = store.expert_path(1)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"expert_0001\.safetensors"):
        Store.open(store.path)


def test_expert_of_another_store(store: Store, tmp_path: Path) -> None:
    other = Store.create(tmp_path / "other", {**MANIFEST, "seed": 1, "num_experts": 1})
    other.write_expert(0, torch.zeros(3, 5), {})
    store.expert_path(0).write_bytes(other.expert_path(0).read_bytes())
    with pytest.raises(UserError, match=r"expert_0000\.safetensors belongs to another"):
        Store.open(store.path)


@pytest.mark.parametrize(
    "change", [{"preprocessing": {"mean": [0.5], "std": [0]}}, {"network": {"name": "Convnet"}}]
)
def test_a_manifest_changed_by_hand_is_named(store: Store, change: dict[str, Any]) -> None:
    rewrite(store, **change)
    with pytest.raises(UserError, match=r"store\.json describes; if one .* by hand") as caught:
        Store.open(store.path)
    assert "delete" not in str(caught.value)


def test_experts_exchanged(store: Store) -> None:
    store.expert_path(0).write_bytes(store.expert_path(1).read_bytes())
    with pytest.raises(UserError, match=r"expert_0000\.safetensors belongs to another"):
        Store.open(store.path)


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing is not a store of experts .*trajmatch expert"):
        Store.open(tmp_path / "nothing")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": '])
def test_damaged_manifest(store: Store, text: str) -> None:
    (store.path / "store.json").write_text(text)
    with pytest.raises(UserError, match=r"store\.json"):
        Store.open(store.path)


@pytest.mark.parametrize("changes", [{"format": "recipes"}, {"version": 2}])
def test_other_format(store: Store, changes: dict[str, Any]) -> None:
    rewrite(store, **changes)
    with pytest.raises(UserError, match="but this release reads 'trajmatch-experts' version 1"):
        Store.open(store.path)


def test_manifest_that_lacks_a_field(store: Store) -> None:
    manifest = json.loads((store.path / "store.json").read_text())
    del manifest["network"]
    files.write_json(store.path / "store.json", manifest)
    with pytest.raises(UserError, match="lacks network"):
        Store.open(store.path)


# --- fingerprints


def test_fingerprint_does_not_cover_the_place_of_the_data(store: Store) -> None:
    before = store.fingerprint
    rewrite(store, data="npz:/somewhere/else.npz")
    assert Store.open(store.path).fingerprint == before


@pytest.mark.parametrize(
    "field", ["dataset", "holdout", "preprocessing", "network", "recipe", "seed", "dtype"]
)
def test_identity_covers_all_that_makes_an_expert(store: Store, field: str) -> None:
    changed = Store(store.path, {**store.manifest, field: "changed"})
    assert changed.identity != store.identity
    assert changed.fingerprint != store.fingerprint


def test_fingerprint_covers_the_number_of_experts(store: Store) -> None:
    grown = Store(store.path, {**store.manifest, "num_experts": 3})
    assert grown.identity == store.identity
    assert grown.fingerprint != store.fingerprint


# --- what it is used with


def test_other_data_sets_are_refused(
    make_config: MakeConfig, tiny_data: str, other_data: str
) -> None:
    store = train_experts(make_config(num_experts=1, epochs=1))
    store.training_set(load_dataset(tiny_data))
    with pytest.raises(UserError, match=r"on npz:.* but the data set 'other' holds other"):
        store.training_set(load_dataset(other_data))
    with pytest.raises(UserError, match=r"of images \[1, 8, 8\], but .* of images \[1, 28, 28\]"):
        store.training_set(load_dataset())


def test_training_set_without_holdout_is_the_whole(make_config: MakeConfig, tiny_data: str) -> None:
    store = train_experts(make_config(num_experts=1, epochs=1))
    dataset = load_dataset(tiny_data)
    training, images, labels = store.training_set(dataset)
    assert training is dataset
    assert (images.shape, labels.shape) == ((0, 1, 8, 8), (0,))


# --- whitening


def test_whitening_has_a_file_of_its_own(whitened: Store) -> None:
    files_there = {path.name for path in whitened.path.iterdir()}
    assert files_there == {"store.json", "preprocessing.safetensors"}
    assert whitened.manifest["preprocessing"] == {"kind": "zca", "eps": 0.1}
    transform = Store.open(whitened.path, complete=False).zca
    assert transform is not None
    tensors, metadata = files.load_tensors(whitened.path / "preprocessing.safetensors")
    assert tensors.keys() == transform.tensors().keys()
    assert all(torch.equal(tensors[name], part) for name, part in transform.tensors().items())
    assert metadata["store"] == whitened.identity


def test_without_whitening_there_is_no_such_file(store: Store) -> None:
    assert store.zca is None
    assert not (store.path / "preprocessing.safetensors").exists()


def test_whitening_that_is_missing_or_damaged_is_named(whitened: Store, store: Store) -> None:
    path = whitened.path / "preprocessing.safetensors"

    def refusal() -> str:
        with pytest.raises(UserError, match=str(path)) as caught:
            _ = Store.open(whitened.path, complete=False).zca
        return str(caught.value)

    tensors, metadata = files.load_tensors(path)
    files.save_tensors(path, tensors, {"store": store.identity})
    assert "belongs to another store" in refusal()
    files.save_tensors(path, {"zca_mean": tensors["zca_mean"]}, metadata)
    assert "is damaged: a ZCA t" in refusal()
    path.write_bytes(path.read_bytes()[:40])
    assert "cut off" in refusal()
    path.unlink()
    assert "cannot read" in refusal()


def test_whitening_left_by_an_interruption_is_replaced(whitened: Store) -> None:
    manifest = {k: v for k, v in whitened.manifest.items() if k not in ("format", "version")}
    before = whitened.zca
    (whitened.path / "store.json").unlink()
    again = Store.create(whitened.path, manifest, before)
    assert again.zca is not None
