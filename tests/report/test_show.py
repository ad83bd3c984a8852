"""`trajmatch show` with the images over the iterations."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from PIL import Image

from trajmatch import artifact, snapshots
from trajmatch.cli.main import main
from trajmatch.errors import UserError


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message of a command that ends with status 2, on one line."""
    try:
        status = main(["show", *arguments])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return " ".join(error.replace("\u2502", " ").split())


def test_an_animation_and_a_strip(folder: Path, tmp_path: Path, capsys) -> None:
    file = str(folder / "distilled.safetensors")
    assert main(["show", file, "--out", str(tmp_path / "x.gif"), "--scale", "2"]) == 0
    with Image.open(tmp_path / "x.gif") as picture:
        assert (picture.format, picture.n_frames) == ("GIF", 9)
        gif_width = picture.width
    assert main(["show", file, "--out", str(tmp_path / "x.png"), "--strip", "--scale", "2"]) == 0
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.format == "PNG" and picture.width > gif_width
    assert capsys.readouterr().out.split() == [str(tmp_path / "x.gif"), str(tmp_path / "x.png")]


def test_snapshots_from_elsewhere(folder: Path, tmp_path: Path, capsys) -> None:
    shutil.copy(folder / "distilled.safetensors", tmp_path / "d.safetensors")
    arguments = [str(tmp_path / "d.safetensors"), "--out", str(tmp_path / "x.gif")]
    assert "(d.snapshots.safetensors)" in fails(capsys, *arguments)
    elsewhere = str(folder / "distilled.snapshots.safetensors")
    assert main(["show", *arguments, "--snapshots", elsewhere]) == 0


def test_snapshots_of_another_run(
    folder: Path, artifact_path: Path, tmp_path: Path, capsys
) -> None:
    elsewhere = str(folder / "distilled.snapshots.safetensors")
    out = str(tmp_path / "x.gif")
    message = fails(capsys, str(artifact_path), "--out", out, "--snapshots", elsewhere)
    assert "holds snapshots of another run: its eval_epochs is" in message
    assert not (tmp_path / "x.gif").exists()


@pytest.mark.parametrize(
    ("begun_for", "last", "of_the_run"),
    [(12, 12, True), (40, 12, True), (7, 12, True), (12, 8, True), (40, 0, False), (7, 7, False)],
)
def test_snapshots_of_a_run_of_other_iterations(
    folder: Path, tmp_path: Path, begun_for: int, last: int, of_the_run: bool
) -> None:
    """A run of 12; one that went on to 12 may have been begun for more or fewer."""
    distilled = artifact.load(folder / "distilled.safetensors")
    found = snapshots.load(folder / "distilled.snapshots.safetensors").until(0)
    found = dataclasses.replace(
        found, iterations=(last,), identity={**found.identity, "iterations": begun_for}
    )
    snapshots.save(tmp_path / "s.safetensors", found)
    if of_the_run:
        assert snapshots.of_artifact(tmp_path / "s.safetensors", distilled).iterations == (last,)
    else:
        told = f"another run: its iterations is {begun_for}, but .* iterations is 12"
        with pytest.raises(UserError, match=told):
            snapshots.of_artifact(tmp_path / "s.safetensors", distilled)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--out", "x.jpg"], "--out should end in .png or .gif"),
        (["--out", "x.gif", "--strip"], "--out should end in .png"),
        (["--frame-seconds", "0"], "--frame-seconds should be a number of at least 0.02"),
        (["--frame-seconds", "nan"], "--frame-seconds should be a number of at least 0.02"),
    ],
)
def test_mistakes(folder: Path, capsys, extra: list[str], message: str) -> None:
    assert message in fails(capsys, str(folder / "distilled.safetensors"), *extra)
