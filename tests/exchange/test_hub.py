"""Pushing to and pulling from the Hugging Face hub, against a server that speaks its protocol."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
import time
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
from trajmatch.experts.store_maintenance import trim

from .conftest import made
from .hub_server import LARGE, Hub, running

huggingface_hub: Any = pytest.importorskip("huggingface_hub")


@pytest.fixture
def distilled(data: str) -> Artifact:
    """Two images per class with hard labels: one set for most tests."""
    return made("index", data)


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
    """List the files of a folder, hidden ones too."""
    return sorted(os.listdir(folder))


@pytest.mark.parametrize("kind", ["index", "logit", "zca"])
def test_a_set_comes_back_bit_for_bit(hub: Hub, file: Path, kind: str, data: str) -> None:
    artifact.save(file, made(kind, data))
    assert push(PushConfig(source=file, to="hf:me/sets")) == "hf:me/sets/d.safetensors"
    assert hub.repositories["me/sets"] == {"d.safetensors": file.read_bytes()}
    new = Path("new/folder/p.safetensors")
    pulled = pull(PullConfig(source="hf:me/sets/d.safetensors", out=new))
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
    commit = hub.commit("me/sets")
    assert pull(PullConfig(source="hf:me/sets", revision=commit)).exists()
    with pytest.raises(UserError, match="has no such --revision"):
        pull(PullConfig(source="hf:me/sets", revision="v9", out=Path("other")))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hf:me/sets/c.safetensors", r"me/sets on the hub has no 'c\.safetensors' \(did you mean"),
        (
            "hf:me/sets",
            "holds several; its .* are: d.safetensors, e.safetensors",
        ),
        ("hf:me/nothing", "hf:me/nothing: .* has no such repository, or the token gives no access"),
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
        with pytest.raises(UserError, match=f"{source}.* cannot be used: .* is damaged"):
            pull(PullConfig(source=source))
    del experts[expert]
    with pytest.raises(UserError, match=r"s is incomplete: it lacks expert_0000\.safetensors"):
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
    with pytest.raises(UserError, match="already exists; choose another name with --out"):
        pull(PullConfig(source="hf:me/sets", out=file))
    assert file.read_bytes() == before


def test_an_output_that_appears_meanwhile_is_kept(hub: Hub, file: Path, store: Store) -> None:
    push(PushConfig(source=file, to="hf:me/both"))
    push(PushConfig(source=store.path, to="hf:me/both"))
    for name in ("d.safetensors", "experts"):
        hub.sending = lambda name=name: Path(name).write_text("mine")
        with pytest.raises(UserError, match=f"^{name} already exists"):
            pull(PullConfig(source=f"hf:me/both/{name}"))
        assert Path(name).read_text() == "mine" and left(Path()) == sorted({*left(Path()), name})
    Path("link").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"^link already exists"):
        pull(PullConfig(source="hf:me/both/experts", out=Path("link")))
    assert [name for name in left(Path()) if name.startswith(".trajmatch")] == []


def test_only_the_files_of_a_store_travel(hub: Hub, store: Store) -> None:
    own = sorted(store.files)
    (store.path / "notes").mkdir()
    for name in ("notes/secret.txt", ".env", "expert_0042.safetensors"):
        (store.path / name).write_text("private")
    push(PushConfig(source=store.path, to="hf:me/s"))
    held = hub.repositories["me/s"]
    assert sorted(held) == [f"experts/{name}" for name in own]
    held["experts/.hidden"] = held["experts/sub/evil.sh"] = b"not ours"
    held["experts/expert_0042.safetensors"] = b"not ours"
    assert left(pull(PullConfig(source="hf:me/s"))) == own
    assert store.num_experts == 3


def test_a_smaller_store_replaces_a_larger_one(hub: Hub, store: Store, tmp_path: Path) -> None:
    push(PushConfig(source=store.path, to="hf:me/s/x"))
    small = trim(store.path, tmp_path / "small", experts="0")
    push(PushConfig(source=small.path, to="hf:me/s/x"))
    assert sorted(hub.repositories["me/s"]) == [f"x/{name}" for name in sorted(small.files)]
    assert Store.open(pull(PullConfig(source="hf:me/s"))).num_experts == 1


def test_names_that_lead_elsewhere_are_not_followed(
    hub: Hub, file: Path, store: Store, tmp_path: Path
) -> None:
    """A hub that lists the user's own files must not get hold of them."""
    push(PushConfig(source=file, to="hf:me/sets"))
    held = hub.repositories["me/sets"]
    content = held.pop("d.safetensors")
    for name in (f"{file}", "../d.safetensors", f"{store.path}/store.json", "a\nb.safetensors"):
        held[name] = content
    before = left(tmp_path), left(store.path)
    with pytest.raises(UserError, match="me/sets on the hub holds no set or store"):
        pull(PullConfig(source="hf:me/sets", out=Path("out")))
    assert (left(tmp_path), left(store.path)) == before


@pytest.mark.parametrize("name", ["../x", "a/../x", "a//x", "./x", ".git/x", "a[1]", "a*", "a\nb"])
def test_names_that_a_hub_should_not_have(hub: Hub, file: Path, name: str) -> None:
    for act in (
        lambda: push(PushConfig(source=file, to=f"hf:me/sets/{name}.safetensors")),
        lambda: pull(PullConfig(source=f"hf:me/sets/{name}.safetensors")),
    ):
        with pytest.raises(UserError, match="an address on the hub should be"):
            act()
    assert not hub.requests


def test_private_does_not_publish(hub: Hub, file: Path) -> None:
    push(PushConfig(source=file, to="hf:me/sets"))
    with pytest.raises(UserError, match="me/sets exists and is public, so --private cannot hide"):
        push(PushConfig(source=file, to="hf:me/sets/secret.safetensors", private=True))
    assert list(hub.repositories["me/sets"]) == ["d.safetensors"]


def test_a_set_is_not_hidden_inside_a_store(hub: Hub, file: Path, store: Store) -> None:
    push(PushConfig(source=store.path, to="hf:me/s/x"))
    with pytest.raises(
        UserError, match="the repository has x, and an expert store and a distilled"
    ):
        push(PushConfig(source=file, to="hf:me/s/x/d.safetensors"))
    push(PushConfig(source=file, to="hf:me/s/y/d.safetensors"))
    before = dict(hub.repositories["me/s"])
    with pytest.raises(UserError, match=r"the repository has y/d\.safetensors, and an expert"):
        push(PushConfig(source=store.path, to="hf:me/s/y"))
    assert hub.repositories["me/s"] == before


def test_a_full_disk_is_not_blamed_on_the_hub(
    hub: Hub, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(PushConfig(source=file, to="hf:me/sets"))

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    with pytest.raises(UserError, match=r"sets: the files cannot be written: .*No space left"):
        pull(PullConfig(source="hf:me/sets"))
    assert left(Path()) == []


def test_a_stop_says_that_nothing_was_kept(
    hub: Hub, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    push(PushConfig(source=file, to="hf:me/sets"))
    hub.sending = lambda: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(0.5))
    assert main(["pull", "hf:me/sets", "--quiet"]) == 128 + signal.SIGTERM
    # The server may complain about the connection first.
    assert capsys.readouterr().err.endswith("trajmatch: stopped by SIGTERM; nothing was pulled\n")
    assert left(Path()) == []


def test_the_package_is_asked_for(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main(["push", str(file), "--to", "hf:me/sets"]) == 2
    assert "needs the package huggingface_hub; pip install trajmatch[hf]" in capsys.readouterr().err
