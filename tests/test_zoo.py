"""The zoo: distilled sets that are part of the package."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_sets import tiny_set

import trajmatch
from trajmatch import artifact, zoo
from trajmatch.artifact import Artifact
from trajmatch.cli.main import main
from trajmatch.data import load_dataset
from trajmatch.data.zca import fit
from trajmatch.errors import UserError

SETS = sorted(zoo.index())


@pytest.mark.parametrize("name", SETS)
def test_a_set_of_the_package(name: str) -> None:
    path, entry = zoo.find(name)
    described = zoo.describe(name)
    assert described["sha256"] == entry.sha256
    assert described["name"] == name and entry.commit and entry.command and entry.licence
    # Scores say how they came about.
    score = described["scores"][-1]
    assert score["split"] == "test" and len(score["accuracies"]) >= 5
    assert score["protocol"]["network"]["name"] == described["network"]["name"]
    most = {1: 200_000, 10: 1_300_000}[described["ipc"]]
    assert path.stat().st_size <= most
    if "zca" not in described:
        distilled = trajmatch.load(f"zoo:{name}")
        assert len(distilled.images) == described["images"]
        assert distilled.stored_bytes == described["stored_bytes"] <= path.stat().st_size


def test_the_package_stays_small() -> None:
    files = [*zoo.FOLDER.glob("*.safetensors")]
    assert sorted(path.stem for path in files) == SETS
    assert sum(path.stat().st_size for path in files) <= 10_000_000


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == SETS
    assert main(["zoo", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in found] == SETS
    assert main(["zoo", f"zoo:{SETS[0]}"]) == 0
    text = capsys.readouterr().out
    for fact in ("sha256", "commit", "command", "licence", "recipe", "seed", "scores"):
        assert f"\n{fact}: " in text


# --- a zoo of our own


CLASSES = 3


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Data set of 3 classes, 8 x 8 pixels; returns its URI."""
    return written(tmp_path / "tiny.npz", seed=0)


def written(path: Path, seed: int) -> str:
    draw, arrays = np.random.default_rng(seed), {}
    for split, count in (("train", 60), ("test", 30)):
        arrays[f"x_{split}"] = draw.integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)
        arrays[f"y_{split}"] = np.arange(count) % CLASSES
    np.savez(path, **arrays)
    return f"npz:{path}"


@pytest.fixture
def whitened(data: str) -> Artifact:
    return tiny_set(data, zca=fit(load_dataset(data).train_images))


@pytest.fixture
def folder(tmp_path: Path, whitened: Artifact, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A zoo with one whitened set, ``white``, and an empty cache."""
    folder = tmp_path / "zoo"
    folder.mkdir()
    monkeypatch.setattr(zoo, "FOLDER", folder)
    monkeypatch.setenv(zoo.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.delenv("TRAJMATCH_DATA", raising=False)
    put(folder, "white", whitened)
    return folder


def put(folder: Path, name: str, distilled: Artifact) -> None:
    """Pack a set and enter it in the index."""
    path = folder / f"{name}.safetensors"
    zoo.pack(path, distilled)
    entry: dict[str, Any] = dict.fromkeys(("commit", "command", "experts", "licence"), "x")
    entry["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "index.json").write_text(json.dumps({name: entry}))


def cached(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_whitening_is_computed_once(
    folder: Path, tmp_path: Path, data: str, whitened: Artifact
) -> None:
    found = trajmatch.load("zoo:white", data)
    assert found.fingerprint == whitened.fingerprint  # the same library: the same bits
    (whole,) = cached(tmp_path)
    assert artifact.load(whole).fingerprint == whitened.fingerprint
    Path(data.partition(":")[2]).unlink()  # not needed any more
    assert trajmatch.load("zoo:white").fingerprint == whitened.fingerprint


def test_parameters_are_kept_in_place_of_images(
    folder: Path, tmp_path: Path, data: str, whitened: Artifact
) -> None:
    small = {"small_images": torch.randn(4 * CLASSES, 1, 4, 4)}
    spec = "upsample:factor=2"
    rendered = artifact.find_parametrisation(spec).render(small, torch.Size([1, 8, 8]))
    four = replace(
        whitened,
        images=rendered,
        labels=torch.arange(CLASSES).repeat_interleave(4),
        parametrisation=spec,
        parameters=small,
        keeps_rendered=False,
    )
    put(folder, "four", four)
    found = trajmatch.load("zoo:four", data)
    assert torch.equal(found.images, rendered)
    assert found.stored_values == small["small_images"].numel()


def test_a_whitening_that_rounds_differently_is_used_and_another_is_not(
    folder: Path, tmp_path: Path, data: str, whitened: Artifact
) -> None:
    assert whitened.zca is not None
    for change, fits in ((1e-6, True), (1e-3, False)):
        matrix = whitened.zca.matrix
        noise = torch.randn(matrix.shape) * matrix.abs().max()
        other = replace(whitened.zca, matrix=matrix + change * (noise + noise.T))
        put(folder, f"white{fits}", replace(whitened, zca=other))
        if fits:
            assert trajmatch.load(f"zoo:white{fits}", data).zca is not None
        else:
            before = cached(tmp_path)
            with pytest.raises(UserError, match="the whitening of zoo:whiteFalse, computed from"):
                trajmatch.load(f"zoo:white{fits}", data)
            assert cached(tmp_path) == before


def test_other_data_and_missing_data(folder: Path, tmp_path: Path) -> None:
    other = written(tmp_path / "other.npz", seed=1)
    with pytest.raises(UserError, match=r"zoo:white was distilled from the data set 'tiny'.*other"):
        trajmatch.load("zoo:white", other)
    with pytest.raises(UserError, match="zoo:white was distilled from the data set 'tiny', which"):
        trajmatch.load("zoo:white")
    assert not cached(tmp_path)


def test_a_damaged_file_of_the_cache(
    folder: Path, tmp_path: Path, data: str, whitened: Artifact
) -> None:
    trajmatch.load("zoo:white", data)
    (whole,) = cached(tmp_path)
    whole.write_bytes(whole.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match=r"is damaged.*; delete this file, and it is made again"):
        trajmatch.load("zoo:white")
    artifact.save(whole, replace(whitened, zca=None))  # a sound set, but another one
    with pytest.raises(
        UserError, match=r"the whitening in .* difference is inf, .*; delete this file"
    ):
        trajmatch.load("zoo:white")
    whole.unlink()
    assert trajmatch.load("zoo:white", data).zca is not None


def test_a_damaged_file_of_the_zoo(folder: Path) -> None:
    path = folder / "white.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match="is damaged: its SHA-256 is not that of the index"):
        trajmatch.load("zoo:white")
    path.unlink()
    with pytest.raises(UserError, match="cannot read"):
        trajmatch.load("zoo:white")


@pytest.mark.parametrize("command", ["eval", "show", "zoo", "export"])
def test_a_name_that_is_not_there(
    command: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "whit" if command == "zoo" else "zoo:whit"
    flags = ["--to", "npz", "--out", str(tmp_path / "o.npz")] if command == "export" else []
    assert main([command, name, *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the zoo has no set 'whit' (did you mean white?); `trajmatch zoo` lists" in line


def test_commands_take_sets_of_the_zoo(
    folder: Path,
    tmp_path: Path,
    data: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--data", data, "--epochs", "2", "--seeds", "2", "--quiet"]
    assert main(["eval", "zoo:white", *flags]) == 0
    assert "distilled" in capsys.readouterr().out
    assert main(["eval", "zoo:white", *flags, "--resume"]) == 0
    assert main(["show", "zoo:white"]) == 0
    assert main(["export", "zoo:white", "--to", "npz", "--out", "white.npz"]) == 0
    assert {"white.png", "white.npz", "white.eval"} <= {path.name for path in Path().iterdir()}
    assert [path.name for path in folder.iterdir() if path.name.startswith("white")] == [
        "white.safetensors"
    ]


def test_a_cache_that_cannot_be_written(
    folder: Path, tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(zoo.CACHE_VARIABLE, str(tmp_path / "file"))
    monkeypatch.setattr(zoo, "fit", lambda *_: pytest.fail("work that is of no use"))
    with pytest.raises(UserError, match=r"cannot write in .*file.*variable TRAJMATCH_CACHE"):
        trajmatch.load("zoo:white", data)
    monkeypatch.setenv(zoo.CACHE_VARIABLE, "~no-such-user/cache")
    with pytest.raises(UserError, match="TRAJMATCH_CACHE should name a folder"):
        trajmatch.load("zoo:white", data)


def test_the_cache_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(zoo.CACHE_VARIABLE, raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert zoo.cache_folder() == tmp_path / ".cache" / "trajmatch" / "zoo"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    assert zoo.cache_folder() == tmp_path / "c" / "trajmatch" / "zoo"


def test_plain_files_are_read_as_before(tmp_path: Path, whitened: Artifact) -> None:
    artifact.save(tmp_path / "d.safetensors", whitened)
    assert trajmatch.load(tmp_path / "d.safetensors").fingerprint == whitened.fingerprint
    shutil.copy(tmp_path / "d.safetensors", tmp_path / "zoo")
    assert trajmatch.load(tmp_path / "zoo").fingerprint == whitened.fingerprint
