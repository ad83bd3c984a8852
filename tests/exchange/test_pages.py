"""The examples of docs/files.md run as they stand there."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trajmatch import artifact
from trajmatch.artifact import Artifact
from trajmatch.cli.main import main
from trajmatch.data import load_dataset
from trajmatch.experts import Store

ROOT = Path(__file__).parents[2]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)


#: What the page says to change for target vectors.
FOR_TARGETS = {
    "if labels.is_floating_point():  # target logits\n    labels = labels.softmax(dim=1)\n": "",
    "cross_entropy": "mse_loss",
    'len(distilled["class_names"])\nmodel': "labels.shape[1]\nmodel",
}


def programs(distilled: Artifact) -> list[str]:
    """The programs of docs/files.md, changed for target vectors if the set has them."""
    found = blocks("docs/files.md", "python")
    if distilled.label_kind == "target":
        for text, instead in FOR_TARGETS.items():
            assert any(text in block for block in found)
            found = [block.replace(text, instead) for block in found]
    return found


@pytest.fixture
def folder(
    tmp_path: Path, distilled: Artifact, experts: Store, data: str, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder with the files that the examples name; the set is real images, to learn from."""
    dataset = load_dataset(data).whitened(distilled.zca)
    real = dataset.normalise(dataset.train_images[distilled.hard_labels])  # image i is of class i
    learned = dataclasses.replace(distilled, images=real, lr=0.05)
    artifact.save(tmp_path / "distilled.safetensors", learned)
    (tmp_path / "experts").symlink_to(experts.path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_exports_and_readers_of_the_page_run(folder: Path, distilled, capsys) -> None:
    for line in "".join(blocks("docs/files.md", "bash")).splitlines():
        if "export" in line:
            assert main(shlex.split(line)[1:]) == 0
    for block in programs(distilled):
        exec(compile(block, "docs/files.md", "exec"), {})
    assert "torch.Size([6, 1, 8, 8]) 0.05 ['0', '1', '2']" in capsys.readouterr().out


def test_the_model_of_the_page_learns_the_labels(folder: Path, distilled, data: str) -> None:
    (recipe,) = (block for block in programs(distilled) if "SGD" in block)
    assert main(["export", "distilled.safetensors", "--to", "torch", "--out", "distilled.pt"]) == 0
    found: dict[str, Any] = {}
    exec(compile(recipe, "docs/files.md", "exec"), found)
    if distilled.label_kind == "target":
        # Both images of a class are equal, so the best prediction is the mean of their targets.
        best = distilled.labels.unflatten(0, (3, 2)).mean(dim=1).repeat_interleave(2, dim=0)
        outputs = found["model"](artifact.load("distilled.safetensors").images)
        torch.testing.assert_close(outputs, best, rtol=0, atol=0.01)
        return
    dataset = load_dataset(data)
    logits = found["model"](found["preprocess"](dataset.test_images.float() / 255))
    accuracy = (logits.argmax(dim=1) == dataset.test_labels).double().mean().item()
    assert accuracy > 0.8


def test_the_page_preprocesses_as_the_set_does(folder: Path) -> None:
    assert main(["export", "distilled.safetensors", "--to", "npz", "--out", "distilled.npz"]) == 0
    (block,) = (block for block in blocks("docs/files.md", "python") if "import numpy" in block)
    found: dict[str, Any] = {}
    exec(compile(block, "docs/files.md", "exec"), found)
    pixels = torch.rand(4, 1, 8, 8)
    expected = artifact.load("distilled.safetensors").preprocessing.apply(pixels)
    np.testing.assert_allclose(found["preprocess"](pixels.numpy()), expected, rtol=1e-4, atol=1e-4)
