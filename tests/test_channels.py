"""Images of any number of channels: pictures, exports, and a run that ends with its results."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import trajmatch
from trajmatch import pictures, snapshots
from trajmatch.cli.main import main
from trajmatch.data import load_dataset
from trajmatch.errors import UserError
from trajmatch.snapshots import Snapshots

CHANNELS = (1, 2, 3, 4, 13)


@pytest.mark.parametrize("channels", CHANNELS)
def test_a_picture_shows_the_first_channels(channels: int) -> None:
    images = torch.rand(4, channels, 6, 6)
    shown = pictures.to_pixels(images, "unit")
    rgb = 1 if channels == 1 else 3
    assert shown.shape == (4, rgb, 6, 6) and shown.dtype == torch.uint8
    expected = torch.zeros(4, rgb, 6, 6)
    expected[:, : min(channels, 3)] = images[:, :3]
    assert torch.equal(shown, expected.mul(255).round().to(torch.uint8))


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("clip", ["sigma", "unit"])
def test_every_kind_of_picture_is_made_of_any_number_of_channels(channels: int, clip: str) -> None:
    images, labels = torch.rand(4, channels, 6, 6), torch.tensor([0, 0, 1, 1])
    taken = Snapshots(
        iterations=(0, 5), images=images.expand(2, *images.shape).half(), labels=labels, identity={}
    )
    made = [
        pictures.grid(images, labels, ["a", "b"], pictures.Look(clip=clip)),
        snapshots.strip(taken, ["a", "b"], pictures.Look(clip=clip)),
        snapshots.animation(taken, ["a", "b"], pictures.Look(clip=clip)),
    ]
    for each in made:
        with Image.open(io.BytesIO(each)) as picture:
            assert picture.width > 96


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_png_keeps_all_channels_that_it_can_hold(channels: int) -> None:
    image = torch.randint(0, 256, (channels, 5, 7), dtype=torch.uint8)
    with Image.open(io.BytesIO(pictures.png(image))) as picture:
        assert picture.mode == {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]
        read = torch.from_numpy(np.array(picture)).reshape(5, 7, channels).permute(2, 0, 1)
    assert torch.equal(read, image)


def test_a_png_of_more_channels_is_refused() -> None:
    with pytest.raises(UserError, match=r"at most 4 channels, but these images have 5; .*npz"):
        pictures.png(torch.zeros(5, 2, 2, dtype=torch.uint8))


def test_a_picture_that_nothing_can_show_is_refused() -> None:
    with pytest.raises(UserError, match="pixels; use a smaller --scale"):
        pictures.grid(torch.rand(1, 3, 8, 8), torch.tensor([0]), ["a"], pictures.Look(scale=99999))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(
        """
        [expert]
        num_experts = 1
        epochs = 2
        width = 2
        depth = 1
        [distill]
        iterations = 2
        student_steps = 1
        expert_epochs = 1
        max_start_epoch = 1
        [evaluate]
        seeds = 1
        epochs = 1
        """
    )
    return str(path)


def data_of(channels: int, folder: Path) -> str:
    draw, labels = np.random.default_rng(0), np.arange(24) % 3
    images = draw.integers(0, 120, (24, 8, 8, channels)) + 40 * labels[:, None, None, None]
    images = images.astype(np.uint8)
    path = folder / f"{channels}.npz"
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    return f"npz:{path}"


@pytest.mark.parametrize("channels", [2, 4, 13])
def test_a_run_has_its_results_pictures_and_page(
    channels: int, recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, data = tmp_path / "out", data_of(channels, tmp_path)
    assert main(["run", "--recipe", recipe, "--data", data, "--out", str(out), "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    assert {"summary.json", "initial.png", "distilled.png", "report.html"} <= {
        path.name for path in out.iterdir()
    }
    assert load_dataset(data).channels == channels
    assert "channels" in (out / "report.html").read_text()
    (score,) = trajmatch.load(out / "distilled.safetensors").scores
    summary = json.loads((out / "summary.json").read_text())
    assert score["mean"] == summary["distilled"]["mean"]


def test_what_is_optional_cannot_undo_a_run(
    recipe: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object, **__: object) -> bytes:
        raise RuntimeError("out of paint")

    out, data = tmp_path / "out", data_of(3, tmp_path)
    arguments = ["run", "--recipe", recipe, "--data", data, "--out", str(out)]
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "grid", broken)
        patch.setattr("trajmatch.report.sections.score_tables", broken)
        with pytest.warns(UserWarning) as told:
            assert main(arguments) == 0
    names = ("initial.png", "distilled.png", "report.html")
    assert [str(each.message) for each in told] == [
        f"{out / name} could not be written: out of paint; the results are complete"
        for name in names
    ]
    shown = capsys.readouterr().out
    assert "random real" in shown and str(out / "summary.json") in shown
    for name in names:
        assert not (out / name).exists() and name not in shown
    before = (out / "distilled.safetensors").read_bytes()
    assert main([*arguments, "--resume"]) == 0
    assert all((out / name).exists() for name in names)
    assert (out / "distilled.safetensors").read_bytes() == before
