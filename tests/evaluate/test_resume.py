"""An evaluation that is stopped shows what it has, and goes on to the result of one left alone."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trajmatch import artifact, interruption
from trajmatch.cli.main import main
from trajmatch.errors import UserError
from trajmatch.evaluate import EvalConfig, distilled, evaluate_artifact

MakeArtifact = Callable[..., Path]
Counted = Callable[[int], list[Any]]


@pytest.fixture
def configure(make_artifact: MakeArtifact, tiny_data: str) -> Callable[..., EvalConfig]:
    file = make_artifact()

    def make(**changes: Any) -> EvalConfig:
        small = {"seeds": 2, "epochs": 1, "network": ("mlp:width=4", "mlp:width=5")}
        return EvalConfig(file=file, data=tiny_data, **{**small, **changes})

    return make


@pytest.fixture
def stopped_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[Any]]:
    """Sends SIGTERM in the n-th epoch from here on; gives the seeds of the trainings begun."""
    train_networks, check = distilled.train_networks, interruption.check

    def install(epoch: int) -> list[Any]:
        begun: list[Any] = []
        left = [epoch]

        def counted(sets: list[Any], *arguments: Any) -> Any:
            for each in sets:
                begun.append(each[2])
                yield from train_networks([each], *arguments)

        def look() -> None:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            check()

        monkeypatch.setattr(distilled, "train_networks", counted)
        monkeypatch.setattr(interruption, "check", look)
        return begun

    return install


@pytest.mark.parametrize("epoch", [1, 2, 3, 8, 16])
def test_goes_on_to_the_same_result(
    configure: Callable[..., EvalConfig], tmp_path: Path, stopped_at: Counted, epoch: int
) -> None:
    """Eight networks of two epochs; the one in training begins anew."""
    whole = evaluate_artifact(configure())
    config = configure(out=tmp_path / "out", resume=True)
    partial: list[dict[str, Any]] = []
    done = (epoch - 1) // 2
    stopped_at(epoch)
    with pytest.raises(interruption.Interrupted) as stop, interruption.signals():
        evaluate_artifact(config, on_stop=partial.append)
    assert stop.value.resumes and stop.value.kept == f"{config.out} has {done} of 8 networks"
    assert [each["unfinished"] for each in partial] == [{"done": done, "of": 8}] * (done > 0)
    for each in partial:
        assert json.loads((tmp_path / "out" / "result.json").read_text()) == each
        first = each["networks"][0]["distilled"]["accuracies"]
        assert first == whole["distilled"]["accuracies"][: len(first)]
    begun = stopped_at(-1)
    assert evaluate_artifact(config) == whole
    assert len(begun) == 8 - done
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == whole
    assert evaluate_artifact(config) == whole and len(begun) == 8 - done


def test_progress_goes_on(configure: Callable[..., EvalConfig], tmp_path: Path) -> None:
    told: list[int] = []

    class Progress:
        def update(self, done: int, **numbers: float) -> None:
            told.append(done)

    evaluate_artifact(configure(out=tmp_path / "out", seeds=1))
    config = configure(out=tmp_path / "out", resume=True)
    evaluate_artifact(config, Progress())
    assert told == [*range(8, 17)] and told[-1] == config.total_rounds(soft=False)


def test_an_evaluation_can_grow(
    configure: Callable[..., EvalConfig], tmp_path: Path, stopped_at: Counted
) -> None:
    out = {"out": tmp_path / "out", "resume": True}
    evaluate_artifact(configure(**out, network=("mlp:width=5",), seeds=1, random_baseline=False))
    begun = stopped_at(-1)
    grown = {"k_center": True, "whole_real": True, "seeds": 3}
    assert evaluate_artifact(configure(**out, **grown)) == evaluate_artifact(configure(**grown))
    assert len(begun) == 2 * 4 * 3 - 1 + 2 * 4 * 3


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"epochs": 2}, r"protocol\.epochs = 1 \(asked for: 2\)"),
        ({"equal_steps": 2, "epochs": None}, r"protocol\.steps = None \(asked for: 2\)"),
        ({"protocol": "datm"}, r"protocol\.name = mtt \(asked for: datm\)"),
        ({"batch_size": 3}, r"protocol\.batch_size = 256 \(asked for: 3\)"),
        ({"seed": 1}, r"seed = 0 \(asked for: 1\)"),
    ],
)
def test_other_settings_are_refused(
    configure: Callable[..., EvalConfig], tmp_path: Path, changes: dict[str, Any], field: str
) -> None:
    config = configure(out=tmp_path / "out")
    evaluate_artifact(config)
    before = {path: path.read_bytes() for path in config.out.rglob("*.json")}
    assert len(before) == 8 + 2
    with pytest.raises(UserError, match=f"holds an evaluation with .*{field}.*repeat the flags"):
        evaluate_artifact(configure(out=tmp_path / "out", resume=True, **changes))
    with pytest.raises(UserError, match="holds an evaluation already; add --resume to continue it"):
        evaluate_artifact(config)
    assert {path: path.read_bytes() for path in config.out.rglob("*.json")} == before


def test_another_file_is_refused_and_a_score_is_none(
    configure: Callable[..., EvalConfig], tmp_path: Path, make_artifact: MakeArtifact
) -> None:
    config = configure(out=tmp_path / "out", resume=True)
    whole = evaluate_artifact(config)
    artifact.save(config.file, artifact.load(config.file).with_score({"mean": 1.0}))
    assert evaluate_artifact(config) == whole
    make_artifact(seed=5)
    with pytest.raises(UserError, match="holds an evaluation with file = "):
        evaluate_artifact(config)


def test_results_of_something_else_are_not_written_over(
    configure: Callable[..., EvalConfig], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "result.json").write_text("{}")
    for resume in (False, True):
        with pytest.raises(UserError, match=r"has a result.json that no evaluation wrote; choose"):
            evaluate_artifact(configure(out=tmp_path / "out", resume=resume))
    assert (tmp_path / "out" / "result.json").read_text() == "{}"


@pytest.mark.parametrize("content", ["", "{}", '{"network": "x", "accuracy": 1.0}'])
def test_a_damaged_record_is_named(
    configure: Callable[..., EvalConfig], tmp_path: Path, content: str
) -> None:
    config = configure(out=tmp_path / "out", resume=True)
    evaluate_artifact(config)
    record = next((tmp_path / "out" / "random_real").iterdir())
    record.write_text(content)
    with pytest.raises(UserError, match=record.name):
        evaluate_artifact(config)


# --- the command


def run(config: EvalConfig, *more: str) -> int:
    small = "--seeds 2 --epochs 1 --network mlp:width=4 --quiet"
    return main(["eval", str(config.file), "--data", str(config.data), *small.split(), *more])


def test_the_time_is_up(
    configure: Callable[..., EvalConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = configure()
    assert run(config, "--json") == 0
    whole = capsys.readouterr().out
    assert os.listdir(tmp_path) == ["distilled.safetensors"]
    looked = [0]

    def remaining() -> float:
        looked[0] += 1
        return 0.0 if looked[0] in (4, 9) else 100.0

    monkeypatch.setattr(interruption, "remaining", remaining)
    assert run(config, "--max-time", "1h") == 75
    out, err = capsys.readouterr()
    assert "stopped: 1 of 4 networks" in " ".join(out.split())
    folder = tmp_path / "distilled.eval"
    assert f"stopped by --max-time; {folder} has 1 of 4 networks; continue with --resume" in err
    assert run(config, "--max-time", "1h") == 2
    assert "add --resume" in capsys.readouterr().err
    assert run(config, "--max-time", "1h", "--resume", "--json") == 75
    assert json.loads(capsys.readouterr().out)["unfinished"] == {"done": 3, "of": 4}
    assert run(config, "--max-time", "1h", "--resume", "--json") == 0
    assert capsys.readouterr().out == whole


@pytest.mark.parametrize(("epoch", "shown"), [(2, False), (3, True)])
def test_a_signal_shows_what_is_done_and_says_that_nothing_is_kept(
    configure: Callable[..., EvalConfig],
    tmp_path: Path,
    stopped_at: Counted,
    capsys: pytest.CaptureFixture[str],
    epoch: int,
    shown: bool,
) -> None:
    stopped_at(epoch)
    assert run(configure()) == 143
    out, err = capsys.readouterr()
    assert ("distilled images" in out) == ("stopped: 1 of 4" in " ".join(out.split())) == shown
    assert "stopped by SIGTERM; nothing was kept" in err and "continue with" not in err
    assert os.listdir(tmp_path) == ["distilled.safetensors"]
