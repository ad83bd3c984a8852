"""Every command prints on a terminal of any encoding, whatever the names of the classes are."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from trajmatch.cli.main import COMMANDS, main

NAMES = ["\u732b", "\u72d7 \u00b1", "not UTF-8: \udcff"]
ENCODINGS = ["ascii", "latin-1", "cp1251", "utf-8"]


def printed(
    monkeypatch: pytest.MonkeyPatch, encoding: str, *arguments: str, status: int = 0
) -> tuple[str, str]:
    """Standard output and error of a command whose terminal has an encoding."""
    files = io.BytesIO(), io.BytesIO()
    with monkeypatch.context() as patch:
        for name, file in zip(("stdout", "stderr"), files, strict=True):
            patch.setattr(sys, name, io.TextIOWrapper(file, encoding=encoding, errors="strict"))
        try:
            assert main(list(arguments)) == status
        except SystemExit as stop:
            assert stop.code == status
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        return files[0].getvalue().decode(encoding), files[1].getvalue().decode(encoding)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on classes that few encodings can write."""
    path = tmp_path_factory.mktemp("encoding")
    labels = np.arange(12) % 3
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8)
    arrays = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    np.savez(path / "d.npz", class_names=np.array([*NAMES[:2], "x"]), **arrays)
    settings = {"num-experts": 1, "expert.epochs": 2, "width": 2, "depth": 1, "iterations": 1}
    settings |= {"student-steps": 1, "expert-epochs": 1, "max-start-epoch": 1}
    settings |= {"lr-img": 1, "seeds": 1, "evaluate.epochs": 1}
    flags = [f"--{name}={value}" for name, value in settings.items()]
    data = ["--data", f"npz:{path / 'd.npz'}"]
    assert main(["demo", "--out", str(path / "out"), *data, *flags, "--quiet"]) == 0
    return path


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("bar", ["", "1"], ids=["lines", "bar"])
def test_every_table_bar_and_list_is_printed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, bar: str
) -> None:
    if bar:
        monkeypatch.setenv("FORCE_COLOR", bar)
    file, data = str(folder / "out" / "distilled.safetensors"), f"npz:{folder / 'd.npz'}"
    expert = ["--num-experts=1", "--epochs=1", "--width=2", "--depth=1", f"--out={tmp_path / 'e'}"]
    for arguments in (
        ["eval", file, "--data", data, "--seeds=1", "--epochs=1"],
        ["expert", "--data", data, *expert],
        ["recipes"],
        ["recipes", "datm/cifar10/ipc10"],
        ["store", "ls", str(folder / "out" / "experts")],
        ["report", str(folder / "out"), "--out", str(tmp_path / "r.html")],
        ["show", file, "--out", str(tmp_path / "\u732b.png")],
    ):
        out, _ = printed(monkeypatch, encoding, *arguments)
        assert out
    assert (tmp_path / "r.html").read_text(encoding="utf-8").count(NAMES[0]) >= 1


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_is_printed_in_ascii(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    out, _ = printed(monkeypatch, "ascii", name, "--help")
    assert out.startswith(f"usage: trajmatch {name}")


def test_our_own_signs_are_ascii(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, data = str(folder / "out" / "distilled.safetensors"), f"npz:{folder / 'd.npz'}"
    out, _ = printed(monkeypatch, "ascii", "eval", file, "--data", data, "--seeds=1", "--epochs=1")
    assert " +- 0.0" in out and "\\" not in out
    assert "66.8 +- 0.2" in printed(monkeypatch, "ascii", "recipes", "datm/cifar10/ipc10")[0]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_cannot_be_written_is_escaped_in_messages(
    monkeypatch: pytest.MonkeyPatch, encoding: str, name: str
) -> None:
    _, err = printed(monkeypatch, encoding, "report", f"{name}.safetensors", status=2)
    assert err.startswith("trajmatch: error: there is no ") and "\n" not in err[:-1]
    if encoding == "ascii":
        assert ascii(name)[1:-1] in err


def test_json_is_the_same_in_every_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, rich = (printed(monkeypatch, each, "recipes", "--json")[0] for each in ENCODINGS[::3])
    assert json.loads(plain) == json.loads(rich)
