"""The command `trajmatch eval`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from trajmatch.cli.main import main

MakeArtifact = Callable[..., Path]


def arguments(file: Path, data: str, *more: str) -> list[str]:
    return ["eval", str(file), "--data", data, "--seeds", "2", "--epochs", "5", *more]


def test_json_is_all_that_is_on_stdout(
    make_artifact: MakeArtifact, tiny_data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(make_artifact(), tiny_data, "--json")) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    for key in ("distilled", "random_real"):
        assert result[key].keys() == {"mean", "std", "accuracies", "seeds", "diverged"}
        assert result[key]["seeds"] == len(result[key]["accuracies"]) == 2
    assert result["protocol"]["epochs"] == 5
    assert "24/24" in err


def test_table_for_people(
    make_artifact: MakeArtifact, tiny_data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = make_artifact()
    assert main(arguments(file, tiny_data, "--json", "--quiet")) == 0
    result = json.loads(capsys.readouterr().out)
    assert main(arguments(file, tiny_data, "--quiet")) == 0
    table, err = capsys.readouterr()
    assert err == ""
    for key, label in (("distilled", "distilled images"), ("random_real", "random real images")):
        (line,) = [line for line in table.splitlines() if label in line]
        assert f"{result[key]['mean']:.1f} +- {result[key]['std']:.1f}" in line


def test_no_random_baseline(
    make_artifact: MakeArtifact, tiny_data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(make_artifact(), tiny_data, "--quiet", "--no-random-baseline")) == 0
    table = capsys.readouterr().out
    assert "distilled images" in table
    assert "random real" not in table


def test_other_data_exits_2(
    make_artifact: MakeArtifact, other_data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(make_artifact(), other_data)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("trajmatch: error: ") and "fingerprint" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("content", [b"", b"not a tensor in sight", b"\xff" * 100])
def test_foreign_file_exits_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    file = tmp_path / "foreign.safetensors"
    file.write_bytes(content)
    assert main(["eval", str(file)]) == 2
    assert "foreign.safetensors" in capsys.readouterr().err


def test_wrong_value_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status: int | str | None = main(["eval", str(tmp_path / "file"), "--seeds", "0"])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    assert "--seeds" in capsys.readouterr().err


def test_several_networks(
    make_artifact: MakeArtifact, tiny_data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["mlp:width=4", "mlp:width=5"]
    assert main(arguments(make_artifact(), tiny_data, "--network", *names)) == 0
    table, err = capsys.readouterr()
    assert "48/48" in err
    for name in names:
        assert sum(name in line for line in table.splitlines()) == 2


def test_all_sets_and_the_maximum_in_the_table(
    make_artifact: MakeArtifact, tiny_data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--protocol", "ast", "--k-center", "--whole-real", "--equal-steps", "3"]
    file = str(make_artifact(lr=1e30))
    assert main(["eval", file, "--data", tiny_data, "--seeds", "1", *more]) == 0
    table, err = capsys.readouterr()
    text = " ".join(table.split())
    for label in ("random real images", "real images by k-center", "all real images"):
        assert label in text
    assert "chosen on the test set" in text
    assert "protocol ast, 3 steps" in text
    assert "4 of the networks diverged and count as 0 % accuracy" in text
    assert "evaluation steps 12/12" in err
