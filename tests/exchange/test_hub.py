"""Pushing to and pulling from the Hugging Face hub, against a server that speaks its protocol."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from trajmatch import artifact
from trajmatch.artifact import Artifact
from trajmatch.cli.main import main
from trajmatch.errors import UserError
from trajmatch.exchange.config import PullConfig, PushConfig
from trajmatch.exchange.hub import pull, push
from trajmatch.experts import Store

from .hub_server import LARGE, Hub, running

huggingface_hub: Any = pytest.importorskip("huggingface_hub")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """Run a hub, and let the package use it in place of the real one."""
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    # Xet, the hub's newer upload protocol, has servers of its own.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    with running() as hub:
        monkeypatch.setattr(
            huggingface_hub, "HfApi", partial(huggingface_hub.HfApi, endpoint=hub.url)
        )
        # It waits and asks again where a server does not answer.
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        yield hub


@pytest.fixture
def store(experts: Store, tmp_path: Path) -> Store:
    """Return a copy of the experts that a test may change."""
    shutil.copytree(experts.path, tmp_path / "experts")
    return Store.open(tmp_path / "experts")


def left(folder: Path) -> list[str]:
    """What a folder holds, hidden files included."""
    return sorted(os.listdir(folder))


def test_a_set_comes_back_bit_for_bit(hub: Hub, file: Path) -> None:
    assert push(PushConfig(source=file, to="hf:me/sets")) == "hf:me/sets/d.safetensors"
    assert hub.repositories["me/sets"] == {"d.safetensors": file.read_bytes()}
    pulled = pull(
        PullConfig(source="hf:me/sets/d.safetensors", out=Path("new/folder/p.safetensors"))
    )
    assert pulled.read_bytes() == file.read_bytes()
    assert left(pulled.parent) == ["p.safetensors"]


# Of the package's own call.
@pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")
def test_large_files_go_by_themselves(hub: Hub, file: Path) -> None:
    one = artifact.load(file)
    many = {name: torch.cat([getattr(one, name)] * 200) for name in ("images", "labels")}
    artifact.save(file, replace(one, **many))
    assert file.stat().st_size > LARGE
    push(PushConfig(source=file, to="hf:me/sets/a/b.safetensors"))
    assert list(hub.objects.values()) == [file.read_bytes()]
    assert pull(PullConfig(source="hf:me/sets")).read_bytes() == file.read_bytes()
    assert Path("b.safetensors").exists()


def test_a_store_comes_back_bit_for_bit(hub: Hub, store: Store) -> None:
    (store.path / ".lock").write_text("")  # hidden files stay here
    assert push(PushConfig(source=store.path, to="hf:me/stores/", private=True)) == (
        f"hf:me/stores/{store.path.name}"
    )
    assert hub.private == {"me/stores": True}
    assert main(["pull", f"hf:me/stores/{store.path.name}", "--out", "pulled"]) == 0
    names = [name for name in left(store.path) if not name.startswith(".")]
    assert left(Path("pulled")) == names
    for name in names:
        assert Path("pulled", name).read_bytes() == (store.path / name).read_bytes()
    assert torch.equal(Store.open("pulled").snapshot(0, 0), store.snapshot(0, 0))


def test_a_tag_of_the_repository(hub: Hub, file: Path) -> None:
    push(PushConfig(source=file, to="hf:me/sets"))
    commit = hub.sha("me/sets")
    assert pull(PullConfig(source="hf:me/sets", revision=commit)).exists()
    with pytest.raises(UserError, match="Revision Not Found"):
        pull(PullConfig(source="hf:me/sets", revision="v9", out=Path("other")))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hf:me/sets/c.safetensors", r"me/sets on the hub has no 'c\.safetensors' \(did you mean"),
        (
            "hf:me/sets",
            "does not hold exactly one set or store; its .* are: d.safetensors, e.safetensors",
        ),
        ("hf:me/nothing", "hf:me/nothing: .*check the name, the connection, and the token"),
        ("me/sets", "an address on the hub should be hf:USER/REPOSITORY .* but is 'me/sets'"),
        ("hf:sets", "an address on the hub should be"),
    ],
)
def test_names_that_are_not_there(hub: Hub, file: Path, source: str, message: str) -> None:
    for name in ("d", "e"):
        push(PushConfig(source=file, to=f"hf:me/sets/{name}.safetensors"))
    before = left(Path())
    with pytest.raises(UserError, match=message):
        pull(PullConfig(source=source))
    assert left(Path()) == before


@pytest.mark.parametrize("status", [401, 503, None])
def test_a_hub_that_does_not_answer(
    hub: Hub, file: Path, status: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.broken = status
    if status is None:  # nobody listens at this port
        nowhere = partial(huggingface_hub.HfApi.func, endpoint="http://127.0.0.1:9")
        monkeypatch.setattr(huggingface_hub, "HfApi", nowhere)
    before = left(Path())
    with pytest.raises(
        UserError, match=r"hf:me/sets/d: the request to http://127\.0\.0\.1:.* failed"
    ):
        pull(PullConfig(source="hf:me/sets/d"))
    with pytest.raises(
        UserError, match=r"hf:me/sets: the request to http://127\.0\.0\.1:.* failed"
    ):
        push(PushConfig(source=file, to="hf:me/sets"))
    assert left(Path()) == before


def test_what_arrives_damaged_is_not_kept(hub: Hub, file: Path, store: Store) -> None:
    push(PushConfig(source=file, to="hf:me/sets"))
    push(PushConfig(source=store.path, to="hf:me/stores/s"))
    held, expert = hub.repositories["me/sets"], "s/expert_0000.safetensors"
    held["d.safetensors"] = held["d.safetensors"][:-1] + b"?"
    experts = hub.repositories["me/stores"]
    experts[expert] = experts[expert][:-1] + b"?"
    before = left(Path())
    for source in ("hf:me/sets", "hf:me/stores/s"):
        with pytest.raises(UserError, match="is damaged"):
            pull(PullConfig(source=source))
    del experts[expert]
    with pytest.raises(UserError, match="lacks 1 of"):
        pull(PullConfig(source="hf:me/stores/s"))
    assert left(Path()) == before


def test_nothing_is_asked_of_the_hub_before_the_files_are_checked(
    hub: Hub, file: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.safetensors"
    other.write_bytes(file.read_bytes()[:-1])
    for source, message in (
        (other, "damaged"),
        (tmp_path / "no", "cannot read"),
        (tmp_path, "not a store"),
    ):
        with pytest.raises(UserError, match=message):
            push(PushConfig(source=source, to="hf:me/sets"))
    with pytest.raises(UserError, match=r"should end in \.safetensors, but is set"):
        push(PushConfig(source=file, to="hf:me/sets/set"))
    assert not hub.requests


def test_an_existing_file_is_kept(hub: Hub, file: Path) -> None:
    push(PushConfig(source=file, to="hf:me/sets"))
    before = file.read_bytes()
    with pytest.raises(UserError, match="already exists; choose another --out"):
        pull(PullConfig(source="hf:me/sets", out=file))
    assert file.read_bytes() == before


def test_the_package_is_asked_for(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main(["push", str(file), "--to", "hf:me/sets"]) == 2
    assert (
        "needs the package huggingface_hub; pip install trajmatch[hub]" in capsys.readouterr().err
    )


def test_soft_labels_and_whitening_are_kept(hub: Hub, file: Path, distilled: Artifact) -> None:
    push(PushConfig(source=file, to="hf:me/sets"))
    pulled = artifact.load(pull(PullConfig(source="hf:me/sets")))
    assert pulled.fingerprint == distilled.fingerprint
