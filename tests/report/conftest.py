"""A finished run on a data set whose names try to get out of their place in the page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from trajmatch.cli.run import RunConfig, pipeline_of
from trajmatch.distill import DistillConfig, distill
from trajmatch.pipeline import run_pipeline

#: What a name must not do in a page: end its element, begin another, fetch something, add a line.
CLASSES = ("<b>bright</b>", "<script src=http://x.invalid/>", 'dark" onload="x&amp;\nnew line')
SIZE = 8


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    draw = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "squares & <i>.npz"
    arrays = {"class_names": np.array(CLASSES)}
    for split, count in (("train", 45), ("test", 21)):
        labels = np.arange(count) % 3
        images = draw.integers(60, 196, (count, SIZE, SIZE, 3))
        images[:, 2:6, 2:6] += (60 * (labels - 1))[:, None, None, None]
        arrays |= {f"x_{split}": images.clip(0, 255).astype(np.uint8), f"y_{split}": labels}
    np.savez(path, **arrays)
    return f"npz:{path}"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, data: str) -> Path:
    """What `trajmatch run` or `trajmatch demo` leaves."""
    out = tmp_path_factory.mktemp("run") / "result"
    stages = {
        "expert": {"num_experts": 2, "epochs": 3, "width": 4, "depth": 1},
        "distill": {
            "iterations": 12,
            "student_steps": 2,
            "expert_epochs": 1,
            "max_start_epoch": 2,
            "ipc": 2,
            "lr_img": 10.0,
            "lr_lr": 1e-5,
            "lr_init": 0.02,
        },
        "evaluate": {"seeds": 2, "epochs": 3},
    }
    config = RunConfig(recipe="cpu/demo", out=out, data=data, full_experts=True)
    made = pipeline_of(config, stages)
    assert made.expert is not None
    expert, distillation = (replace(each, recipe=None) for each in (made.expert, made.distill))
    run_pipeline(replace(made, expert=expert, distill=distillation))
    return out


@pytest.fixture(scope="session")
def artifact_path(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    """A distilled file by itself, evaluated on the way, with two evaluations beside it."""
    out = tmp_path_factory.mktemp("alone") / "set <1>.safetensors"
    distill(
        DistillConfig(
            experts=folder / "experts",
            out=out,
            iterations=9,
            student_steps=2,
            expert_epochs=1,
            max_start_epoch=2,
            matches=2,
            skip_above=0.9,
            labels="soft",
            eval_every=3,
            eval_seeds=2,
            eval_epochs=1,
        )
    )
    return out


@pytest.fixture
def evaluation() -> dict[str, object]:
    """What `trajmatch eval --json` prints, in part."""

    def score(mean: float) -> dict[str, object]:
        accuracies = [mean - 1, mean + 1]
        return {"mean": mean, "std": 1.0, "accuracies": accuracies, "seeds": 2, "diverged": 1}

    networks = [
        {
            "network": name,
            "distilled": score(60 + k),
            "random_real": score(40 + k),
            "k_center": None,
            "whole_real": score(80 + k),
            "protocol": {"name": "mtt"},
        }
        for k, name in enumerate(("ConvNet", "<resnet18>"))
    ]
    return json.loads(json.dumps({**networks[0], "networks": networks, "selection": "last"}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says that the browser was left out, which the list of failures would not."""
    skipped = terminalreporter.stats.get("skipped", [])
    if any("NO BROWSER" in str(each.longrepr) for each in skipped):
        terminalreporter.write_line(
            "NO BROWSER: the report was not opened, because there is no chromium here "
            "(Debian: apt-get install chromium)"
        )
