"""The program that puts distilled sets into the zoo, and evaluates them again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import fill_zoo
import numpy as np
import pytest
from tiny_sets import tiny_set

from trajmatch import artifact, zoo

pytestmark = pytest.mark.harness

CLASSES = 3
FACTS = ("--commit", "1a2b3c4", "--command", "trajmatch run", "--experts", "2 of width 4")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data set ``tiny``, set ``d.safetensors`` of it, an empty zoo and its page."""
    draw, arrays = np.random.default_rng(0), {}
    for split, count in (("train", 60), ("test", 30)):
        arrays[f"x_{split}"] = draw.integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)
        arrays[f"y_{split}"] = np.arange(count) % CLASSES
    np.savez(tmp_path / "tiny.npz", **arrays)
    (tmp_path / "zoo").mkdir()
    (tmp_path / "index.json").write_text("{}")
    (tmp_path / "zoo.md").write_text(
        "<!-- sets of the zoo -->\n\n<!-- end of sets of the zoo -->\n"
    )
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    monkeypatch.setattr(fill_zoo, "PAGE", tmp_path / "zoo.md")
    monkeypatch.setattr(fill_zoo, "NETWORKS", 2)
    monkeypatch.setitem(fill_zoo.LICENCES, "tiny", "no terms")
    monkeypatch.setenv("TRAJMATCH_DATA", str(tmp_path))
    artifact.save(tmp_path / "d.safetensors", tiny_set(f"npz:{tmp_path / 'tiny.npz'}"))
    return tmp_path


def test_a_set_is_added_and_evaluated_again(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fill_zoo.main(["add", f"{folder}/d.safetensors", "tiny-ipc1", *FACTS]) == 0
    described = zoo.describe("tiny-ipc1")
    assert (described["commit"], described["licence"]) == ("1a2b3c4", "no terms")
    assert len(described["scores"][-1]["accuracies"]) == 2
    page = (folder / "zoo.md").read_text()
    assert "| `tiny-ipc1` | 3, pixels | hard | 792 |" in page and "zoo/tiny-ipc1.png" in page
    assert (folder / "zoo" / "tiny-ipc1.png").exists()
    capsys.readouterr()

    # The score of the file is now far from what networks reach.
    for mean, status in ((described["scores"][-1]["mean"], None), (99.0, 1)):
        kept = zoo.load("zoo:tiny-ipc1")
        score = {**kept.scores[-1], "mean": mean}
        zoo.pack(folder / "tiny-ipc1.safetensors", replace(kept, scores=(score,)))
        entry = json.loads((folder / "index.json").read_text())
        entry["tiny-ipc1"]["sha256"] = fill_zoo.hashlib.sha256(
            (folder / "tiny-ipc1.safetensors").read_bytes()
        ).hexdigest()
        (folder / "index.json").write_text(json.dumps(entry))
        found = fill_zoo.main(["check", "tiny-ipc1"])
        assert status in (None, found)
        assert f"tiny-ipc1: {mean:.2f} % in the zoo" in capsys.readouterr().out


def test_data_whose_terms_are_unknown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill_zoo.LICENCES.pop("tiny")
    assert fill_zoo.main(["add", f"{folder}/d.safetensors", "tiny-ipc1", *FACTS]) == 2
    assert "LICENCES has no terms of tiny" in capsys.readouterr().err
    assert not (folder / "tiny-ipc1.safetensors").exists()
