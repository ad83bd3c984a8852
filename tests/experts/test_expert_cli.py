"""The command `trajmatch expert`."""

from __future__ import annotations

from pathlib import Path

import pytest

from trajmatch.cli.main import main
from trajmatch.experts import Store


def arguments(store: Path, data: str, *more: str) -> list[str]:
    small = {"num-experts": 2, "epochs": 1, "width": 4, "depth": 2, "batch-size": 16, "workers": 1}
    flags = [text for name, value in small.items() for text in (f"--{name}", str(value))]
    return ["expert", "--data", data, "--out", str(store), *flags, *more]


def test_trains_and_shows_the_experts(
    tmp_path: Path, tiny_data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(tmp_path / "store", tiny_data, "--lr", "0.02", "--norm", "layer")) == 0
    store = Store.open(tmp_path / "store")
    assert store.manifest["recipe"]["lr"] == 0.02
    assert store.manifest["network"]["norm"] == "layer"
    assert store.manifest["data"] == tiny_data
    shown = capsys.readouterr()
    assert "2 experts" in shown.out
    assert f"{store.metrics(1)['train_loss'][0]:.3f}" in shown.out
    assert "2/2" in shown.err


def test_warns_of_experts_that_diverged(
    tmp_path: Path, tiny_data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(tmp_path / "store", tiny_data, "--lr", "10", "--epochs", "3")) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert "diverged" in warnings[0] and "lower --lr" in warnings[0]
    assert not any("raise --lr" in warning for warning in warnings)


def test_quiet_says_nothing(
    tmp_path: Path, tiny_data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(tmp_path / "store", tiny_data, "--quiet")) == 0
    assert capsys.readouterr() == ("", "")


def test_resume_of_a_complete_store_exits_0(tmp_path: Path, tiny_data: str) -> None:
    command = arguments(tmp_path / "store", tiny_data, "--resume", "--quiet")
    assert main(command) == 0
    assert main(command) == 0


def test_existing_store_exits_2(
    tmp_path: Path, tiny_data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = arguments(tmp_path / "store", tiny_data, "--quiet")
    assert main(command) == 0
    assert main(command) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("trajmatch: error: ") and "add --resume" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "wrong", [["--lr", "-1"], ["--norm", "bath"], ["--epochs", "many"], ["--typo", "1"]]
)
def test_wrong_flags_exit_2_and_write_nothing(
    tmp_path: Path, tiny_data: str, capsys: pytest.CaptureFixture[str], wrong: list[str]
) -> None:
    try:
        status: int | str | None = main(arguments(tmp_path / "store", tiny_data, *wrong))
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert wrong[0] in err
    assert not (tmp_path / "store").exists()


def test_interruption_exits_130_and_names_resume(
    tmp_path: Path,
    tiny_data: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def press_ctrl_c(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("trajmatch.experts.train.work", press_ctrl_c)
    assert main(arguments(tmp_path / "store", tiny_data)) == 130
    assert "--resume" in capsys.readouterr().err
