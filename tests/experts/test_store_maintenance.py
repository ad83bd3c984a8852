"""Stores checked, listed, cut down and put together."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trajmatch import artifact, files
from trajmatch.cli.main import main
from trajmatch.cli.store import verdicts
from trajmatch.errors import UserError
from trajmatch.experts import ExpertConfig, Store, train_experts
from trajmatch.experts.store_maintenance import merge, trim, verify

MakeConfig = Callable[..., ExpertConfig]
Contents = Callable[[Path], dict[str, bytes]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_data: str) -> Path:
    """A store of three experts with epochs 0 to 2; tests copy it."""
    out = tmp_path_factory.mktemp("trained") / "store"
    train(out, tiny_data)
    return out


def train(out: Path, data: str, **settings: object) -> Store:
    small = {"num_experts": 3, "epochs": 2, "batch_size": 36, "width": 4, "depth": 2, "workers": 1}
    return train_experts(ExpertConfig(out=out, data=data, **{**small, **settings}))


@pytest.fixture
def store(trained: Path, tmp_path: Path) -> Store:
    shutil.copytree(trained, tmp_path / "store")
    return Store.open(tmp_path / "store")


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


# --- verify


def test_sound_files_are_ok(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert [verdict.status for verdict in verify(store.path)] == ["ok"] * 4
    assert main(["store", "verify", str(store.path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "4 ok"
    assert main(["store", "verify", str(store.path), "--quiet"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("place", [-1, -500, 300])
def test_a_flipped_bit_is_told_with_the_name_of_the_file(
    store: Store, capsys: pytest.CaptureFixture[str], place: int
) -> None:
    flip(store.expert_path(1), place)
    assert [verdict.status for verdict in verify(store.path)] == ["ok", "ok", "damaged", "ok"]
    assert main(["store", "verify", str(store.path), "--quiet"]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("damaged") and str(store.expert_path(1)) in line


def test_a_flipped_bit_of_the_manifest_is_found(store: Store) -> None:
    path = store.path / "store.json"
    text = path.read_text()
    path.write_text(text.replace('"num_experts": 3', '"num_experts": 2'))
    (verdict,) = verify(store.path)
    assert verdict.status == "damaged" and "remove its entry 'checksum'" in verdict.detail
    with pytest.raises(UserError, match="does not match its checksum"):
        Store.open(store.path)


def test_a_flipped_bit_is_found_when_the_snapshot_is_read(store: Store) -> None:
    flip(store.expert_path(1), -1)  # the last parameter of the last epoch
    fresh = Store.open(store.path)
    fresh.snapshot(1, 1)
    with pytest.raises(UserError, match=r"expert_0001.safetensors is damaged: .* of epoch 2"):
        fresh.snapshot(1, 2)


def test_what_is_missing_or_unfinished_is_told(store: Store) -> None:
    store.expert_path(2).unlink()
    files.save_tensors(store.checkpoint_path(2), {"theta": torch.zeros(3)}, {})
    assert [verdict.status for verdict in verify(store.path)] == ["ok"] * 3 + ["unfinished"]
    store.checkpoint_path(2).unlink()
    assert [verdict.status for verdict in verify(store.path)] == ["ok"] * 3 + ["missing"]


def test_files_without_checksum_are_read_and_told(store: Store, tmp_path: Path) -> None:
    """As releases wrote them that knew no checksums."""
    from safetensors.torch import save_file

    files.write_json(store.path / "store.json", store.manifest)
    path = store.expert_path(0)
    tensors, metadata = files.load_tensors(path)
    del metadata["rows"]
    save_file(tensors, path, metadata={files.METADATA_KEY: files._to_json(path, metadata)})
    statuses = [verdict.status for verdict in verify(store.path)]
    assert statuses == ["no checksum", "no checksum", "ok", "ok"]
    assert torch.equal(Store.open(store.path).snapshot(0, 1), tensors["snapshots"][1])


def test_verifies_a_single_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    files.save_tensors(path, {"a": torch.ones(3)}, {"format": artifact.FORMAT})
    (verdict,) = verdicts(path)
    assert verdict.status == "damaged" and "has format version None" in verdict.detail
    files.save_tensors(path, {"a": torch.ones(3)}, {"format": "something else"})
    assert [verdict.status for verdict in verdicts(path)] == ["ok"]
    flip(path, -1)
    assert [verdict.status for verdict in verdicts(path)] == ["damaged"]


# --- ls


def test_ls_says_what_is_there(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "ls", str(store.path)]) == 0
    out = capsys.readouterr().out
    for text in ("3 of 3, seed 0", "tiny, 3 classes", "epochs kept   0-2", "float32", "accuracy"):
        assert text in out
    store.expert_path(1).unlink()
    assert main(["store", "ls", str(store.path)]) == 0
    assert "2 of 3, 1 missing (1)" in capsys.readouterr().out


# --- trim


def test_trimmed_to_the_first_is_the_store_that_training_makes(
    store: Store, tmp_path: Path, tiny_data: str, contents: Contents
) -> None:
    wanted = train(tmp_path / "wanted", tiny_data, num_experts=2, keep="1")
    before = contents(store.path)
    arguments = ["--out", str(tmp_path / "trimmed"), "--keep", "1", "--experts", "0-1"]
    assert main(["store", "trim", str(store.path), *arguments]) == 0
    assert contents(tmp_path / "trimmed") == contents(wanted.path)
    assert contents(store.path) == before
    train(tmp_path / "trimmed", tiny_data, num_experts=3, keep="1", resume=True)


def test_trimmed_to_others_says_where_they_come_from(
    store: Store, tmp_path: Path, tiny_data: str
) -> None:
    trimmed = trim(store.path, tmp_path / "trimmed", experts="1-2")
    assert trimmed.manifest["sources"] == [{"seed": 0, "expert": 1}, {"seed": 0, "expert": 2}]
    assert torch.equal(trimmed.snapshot(1, 2), store.snapshot(2, 2))
    assert trimmed.metrics(0) == store.metrics(1)
    with pytest.raises(UserError, match="was made by `trajmatch store`"):
        train(trimmed.path, tiny_data, num_experts=2, resume=True)
    again = trim(trimmed.path, tmp_path / "again", experts="1")
    assert again.manifest["sources"] == [{"seed": 0, "expert": 2}]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"experts": "0-3"},
            "--experts 0-3 should list experts from 0 to 2 .*, but contains '0-3'",
        ),
        ({"experts": "1"}, "has no expert 1"),
        ({"keep": "0,3"}, "--keep 0,3 should list epochs from 0 to 2 .*, but contains '3'"),
        ({"keep": "x"}, "--keep x should list .*, but contains 'x'"),
    ],
)
def test_trim_refuses_what_is_not_there(
    store: Store, tmp_path: Path, settings: dict[str, str], message: str
) -> None:
    store.expert_path(1).unlink()
    with pytest.raises(UserError, match=message):
        trim(store.path, tmp_path / "trimmed", **settings)
    assert not (tmp_path / "trimmed").exists()


def test_a_failure_leaves_nothing(store: Store, tmp_path: Path) -> None:
    flip(store.expert_path(2), -1)
    with pytest.raises(UserError, match=r"expert_0002.safetensors is damaged"):
        trim(store.path, tmp_path / "trimmed")
    assert os.listdir(tmp_path) == ["store"]
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="already exists"):
        trim(store.path, tmp_path / "there")


# --- merge


def test_parts_of_a_store_merge_into_the_whole(
    store: Store, tmp_path: Path, contents: Contents
) -> None:
    shutil.copytree(store.path, tmp_path / "other")
    whole = contents(store.path)
    store.expert_path(0).unlink()
    (tmp_path / "other" / "expert_0002.safetensors").unlink()
    arguments = [str(store.path), str(tmp_path / "other"), "--out", str(tmp_path / "merged")]
    assert main(["store", "merge", *arguments]) == 0
    assert contents(tmp_path / "merged") == whole


def test_seeds_merge_in_their_order(store: Store, tmp_path: Path, tiny_data: str) -> None:
    other = train(tmp_path / "other", tiny_data, seed=5, num_experts=1)
    merged = merge([other.path, store.path], tmp_path / "merged")
    assert merged.manifest["seed"] is None
    assert [merged.origin(expert)["seed"] for expert in range(4)] == [0, 0, 0, 5]
    assert torch.equal(merged.snapshot(3, 2), other.snapshot(0, 2))
    assert Store.open(merged.path).num_experts == 4


def test_merge_names_what_differs(store: Store, tmp_path: Path, tiny_data: str) -> None:
    other = train(tmp_path / "other", tiny_data, lr=0.5, seed=1, num_experts=1)
    with pytest.raises(UserError, match=r"because their recipe\.lr differ: 0\.01 and 0\.5"):
        merge([store.path, other.path], tmp_path / "merged")
    kept = trim(store.path, tmp_path / "kept", keep="0")
    with pytest.raises(UserError, match="because their snapshots differ"):
        merge([store.path, kept.path], tmp_path / "merged")
    shutil.copytree(store.path, tmp_path / "copy")
    copy = Store.open(tmp_path / "copy")
    copy.write_expert(1, torch.zeros(3, len(copy.snapshot(1, 0))), {})
    with pytest.raises(UserError, match="are both expert 1 of seed 0, but differ"):
        merge([store.path, copy.path], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


# --- the command


def test_an_unknown_action_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "verify", "nowhere"]) == 2
    assert "there is no nowhere; give an expert store" in capsys.readouterr().err
    assert main(["store", "verfy"]) == 2
    assert "no action 'verfy' (did you mean verify?)" in capsys.readouterr().err
    assert main(["store", "merge", "one", "--out", "x"]) == 2
    assert "needs two stores or more" in capsys.readouterr().err
