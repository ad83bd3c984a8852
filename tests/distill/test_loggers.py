"""TensorBoard and Weights & Biases, by stand-ins that note what they are told."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stand_ins import Interrupter

from trajmatch.cli.main import main
from trajmatch.distill import DistillConfig, distill
from trajmatch.distill.metrics import curves
from trajmatch.errors import UserError

Configure = Callable[..., DistillConfig]


class SummaryWriter:
    """Of TensorBoard."""

    made: list[SummaryWriter]

    def __init__(self, folder: Path, purge_step: int) -> None:
        self.folder, self.purge_step = folder, purge_step
        self.points: list[tuple[str, float, int]] = []
        self.closed = False
        self.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.points.append((name, value, step))

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def writers(monkeypatch: pytest.MonkeyPatch) -> list[SummaryWriter]:
    module: Any = types.ModuleType("torch.utils.tensorboard")
    SummaryWriter.made = []
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return SummaryWriter.made


class WandbRun:
    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.points: list[tuple[dict[str, float], int]] = []
        self.finished = False

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.points.append((numbers, step))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Any:
    module: Any = types.ModuleType("wandb")
    module.runs = []
    module.Error = type("Error", (Exception,), {})
    module.Settings = lambda **settings: settings

    def init(**settings: Any) -> WandbRun:
        module.runs.append(WandbRun(settings))
        return module.runs[-1]

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_tensorboard_gets_every_curve(
    configure: Configure, writers: list[SummaryWriter], tmp_path: Path
) -> None:
    config = configure(
        iterations=3, tensorboard=tmp_path / "tb", eval_every=2, eval_epochs=1, eval_seeds=1
    )
    distill(config)
    (writer,) = writers
    assert (writer.folder, writer.purge_step, writer.closed) == (tmp_path / "tb", 1, True)
    at = {(name, step): value for name, value, step in writer.points}
    assert {step for name, step in at if name == "loss"} == {1, 2, 3}
    assert {step for name, step in at if name == "test/mean"} == {2, 3}
    assert at["refused", 1] == 0.0
    assert at["step_size", 1] != at["step_size", 3]


def test_a_run_that_goes_on_cuts_the_curves_at_its_checkpoint(
    configure: Configure, writers: list[SummaryWriter], tmp_path: Path
) -> None:
    config = configure(tensorboard=tmp_path / "tb")
    with pytest.raises(KeyboardInterrupt):
        distill(config, Interrupter(5))
    assert writers[0].closed
    distill(replace(config, resume=True))
    assert writers[1].purge_step == 5
    assert [step for name, _, step in writers[1].points if name == "loss"] == [5, 6, 7, 8, 9, 10]


def test_wandb_gets_every_line_and_continues_the_same_run(
    configure: Configure, wandb: Any, tmp_path: Path
) -> None:
    config = configure(wandb="images")
    with pytest.raises(KeyboardInterrupt):
        distill(config, Interrupter(5))
    distill(replace(config, resume=True, iterations=12))
    distill(configure(wandb="images", out=tmp_path / "elsewhere", quiet=False))
    first, second, other = wandb.runs
    assert first.settings["project"] == "images" and first.settings["name"] == "distilled"
    assert first.settings["config"]["lr_img"] == 10.0
    assert first.settings["settings"] == {"silent": True}
    assert other.settings["settings"] == {"silent": False}
    assert first.settings["id"] == second.settings["id"]
    assert second.settings["resume"] == "allow"
    assert first.settings["id"] != other.settings["id"]
    assert all(run.finished for run in wandb.runs)
    assert [step for _, step in second.points] == list(range(5, 13))
    assert all(numbers["loss"] > 0 for numbers, _ in second.points)


def test_they_do_not_change_the_result(
    configure: Configure, writers: list[SummaryWriter], wandb: Any, tmp_path: Path
) -> None:
    distill(configure())
    followed = configure(out=tmp_path / "followed", tensorboard=tmp_path / "tb", wandb="images")
    distill(followed)
    assert followed.out.read_bytes() == configure().out.read_bytes()


def test_what_wandb_refuses_is_a_message(configure: Configure, wandb: Any, monkeypatch) -> None:
    def refuse(**settings: Any) -> None:
        raise wandb.Error("no API key")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(UserError, match="--wandb images: no API key"):
        distill(configure(wandb="images"))


def test_a_folder_that_cannot_be_written_is_a_message(
    configure: Configure, writers: list[SummaryWriter], monkeypatch
) -> None:
    def refuse(self: SummaryWriter, folder: Path, purge_step: int) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(SummaryWriter, "__init__", refuse)
    with pytest.raises(UserError, match="cannot write in logs: Permission denied"):
        distill(configure(tensorboard=Path("logs")))


@pytest.mark.parametrize(
    ("flag", "value", "module"),
    [("--tensorboard", "tb", "torch.utils.tensorboard"), ("--wandb", "images", "wandb")],
)
def test_what_is_not_installed_is_named(
    store: Path, tmp_path: Path, capsys, monkeypatch, flag, value, module
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    arguments = [
        *("distill", "--experts", str(store), "--out", str(tmp_path / "d.safetensors")),
        *("--iterations", "1", "--max-start-epoch", "2", flag, value),
    ]
    assert main(arguments) == 2
    assert f"pip install 'trajmatch[{flag[2:]}]'" in capsys.readouterr().err


def test_neither_is_imported_unasked(configure: Configure, monkeypatch) -> None:
    for module in ("tensorboard", "torch.utils.tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, module, None)
    distill(configure(iterations=1))


def test_curves_leave_out_what_is_no_number() -> None:
    line = {
        "iteration": 3,
        "loss": None,
        "step_size": 0.5,
        "losses": [0.5, 1.0],
        "refused": "the loss is not finite",
        "skipped": False,
    }
    assert curves(line) == {"step_size": 0.5, "refused": 1.0, "skipped": 0.0}
    evaluation = {"iteration": 3, "split": "holdout", "mean": 50.0, "std": 1, "seeds": 3}
    assert curves({**evaluation, "diverged": None}) == {"holdout/mean": 50.0, "holdout/std": 1.0}
