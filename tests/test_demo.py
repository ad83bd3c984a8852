"""The demo, reduced to seconds, and its gain."""

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import trajmatch
from trajmatch.cli.main import main
from trajmatch.cli.run import RunConfig, pipeline_of, table
from trajmatch.errors import UserError
from trajmatch.pipeline import Pipeline, run_pipeline
from trajmatch.progress import NoProgress


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two classes of noise around a bright or a dark square."""
    random = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "squares.npz"
    arrays = {"class_names": np.array(["bright", "dark"])}
    for split, count in (("train", 40), ("test", 20)):
        labels = np.arange(count) % 2
        images = random.integers(60, 196, (count, 8, 8))
        images[:, 2:6, 2:6] += np.where(labels == 0, 60, -60)[:, None, None]
        arrays |= {f"x_{split}": images.astype(np.uint8), f"y_{split}": labels}
    np.savez(path, **arrays)
    return f"npz:{path}"


STAGES = {
    "expert": {"num_experts": 1, "epochs": 3, "width": 4, "depth": 1},
    "distill": {"iterations": 4, "student_steps": 2, "expert_epochs": 1, "max_start_epoch": 2},
    "evaluate": {"seeds": 2, "epochs": 3},
}


def tiny(out: Path, data: str, resume: bool = False) -> Pipeline:
    recipe = "cpu/demo"
    return pipeline_of(RunConfig(recipe=recipe, out=out, data=data, resume=resume), STAGES)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data: str) -> Pipeline:
    pipeline = tiny(tmp_path_factory.mktemp("demo") / "out", data)
    run_pipeline(pipeline)
    return pipeline


def test_leaves_store_artifact_pictures_and_summary(finished) -> None:
    assert {path.name for path in finished.folder.path.iterdir()} == {
        "experts",
        "distilled.safetensors",
        "distilled.jsonl",
        "distilled.snapshots.safetensors",
        "initial.png",
        "distilled.png",
        "summary.json",
        "report.html",
    }
    for picture in (finished.folder.initial_picture, finished.folder.distilled_picture):
        with Image.open(picture) as image:
            assert image.height == 4 + 20 + 12 * 8 + 4  # a row below the names


def test_summary(finished) -> None:
    summary = json.loads(finished.folder.summary.read_text())
    assert summary["seconds"] > 0
    assert set(summary["stage_seconds"]) == {"experts", "distillation", "evaluation"}
    assert sum(summary["stage_seconds"].values()) <= summary["seconds"]
    for key in ("random_real", "distilled"):
        assert summary[key]["seeds"] == 2
        assert 0 <= summary[key]["mean"] <= 100
        assert summary[key]["mean"] == pytest.approx(np.mean(summary[key]["accuracies"]))
        assert summary[key]["std"] == pytest.approx(np.std(summary[key]["accuracies"]))
    difference = summary["distilled"]["mean"] - summary["random_real"]["mean"]
    assert summary["improvement"] == difference


def test_artifact_carries_its_score(finished) -> None:
    summary = json.loads(finished.folder.summary.read_text())
    (score,) = trajmatch.load(finished.folder.artifact).scores
    assert score["mean"] == summary["distilled"]["mean"]
    assert score["protocol"] == summary["protocol"]


def test_same_seed_same_artifact(finished, data, tmp_path) -> None:
    run_pipeline(tiny(tmp_path / "again", data))
    assert (tmp_path / "again" / finished.folder.artifact.name).read_bytes() == (
        finished.folder.artifact.read_bytes()
    )


def test_an_earlier_demo_is_refused_or_resumed(finished, data) -> None:
    before = finished.folder.artifact.read_bytes()
    with pytest.raises(UserError, match="holds an earlier run"):
        run_pipeline(finished)
    run_pipeline(tiny(finished.folder.path, data, resume=True))
    assert finished.folder.artifact.read_bytes() == before


def test_an_interrupted_demo_is_resumed(finished, data, tmp_path) -> None:
    class Interrupt:
        def update(self, done: int, **numbers: float) -> None:
            raise KeyboardInterrupt

    def stages(total: int, title: str):
        return nullcontext(Interrupt() if title == "evaluation" else NoProgress())

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(tiny(out, data), stages)
    assert not (out / "summary.json").exists()
    with pytest.raises(UserError, match="--resume"):
        run_pipeline(tiny(out, data))
    run_pipeline(tiny(out, data, resume=True))
    assert (
        out / finished.folder.artifact.name
    ).read_bytes() == finished.folder.artifact.read_bytes()


def test_table(finished) -> None:
    lines = table(json.loads(finished.folder.summary.read_text())).splitlines()
    assert len(lines) == 4
    assert lines[0].split("  ")[0] == "trained on" and lines[0].endswith("networks")
    # two images of 8 x 8 in float32 and their classes in int64
    assert lines[2].split()[:7] == ["random", "real", "images", "hard", "2", "128", "528"]
    assert lines[3].split()[:6] == ["distilled", "images", "hard", "2", "128", "528"]
    assert lines[3].split()[-1] == "2"


def test_command(data, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    arguments = [
        *("demo", "--out", str(out), "--data", data, "--num-experts", "1", "--expert.epochs", "2"),
        *("--width", "4", "--depth", "1", "--iterations", "2", "--student-steps", "2"),
        *("--expert-epochs", "1", "--max-start-epoch", "1", "--lr-img", "1", "--seeds", "1"),
        *("--evaluate.epochs", "2"),
    ]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "random real" in printed and "points" in printed
    names = ("distilled.safetensors", "initial.png", "distilled.png", "summary.json", "report.html")
    for name in names:
        assert str(out / name) in printed
    assert main(arguments) == 2
    assert "holds an earlier run" in capsys.readouterr().err


def test_an_unwritable_folder(tmp_path, capsys) -> None:
    (tmp_path / "file").write_text("")
    assert main(["demo", "--out", str(tmp_path / "file" / "out")]) == 2
    error = capsys.readouterr().err
    assert "trajmatch: error:" in error and "Traceback" not in error


def test_the_demo_is_far_above_random_images(tmp_path) -> None:
    assert main(["demo", "--out", str(tmp_path / "out"), "--quiet"]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["distilled"]["seeds"] == 3
    assert summary["improvement"] >= 18
