"""Experts trained for the first epochs of their course: what is there, and how they go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trajmatch.cli.main import main
from trajmatch.errors import UserError
from trajmatch.experts import ExpertConfig, Store, train_experts
from trajmatch.experts.store_maintenance import merge, trim, verify

MakeConfig = Callable[..., ExpertConfig]
Contents = Callable[[Path], dict[str, bytes]]

RECIPES: dict[str, dict[str, Any]] = {
    "sgd": {},
    "momentum and weight decay": {"momentum": 0.9, "weight_decay": 1e-3},
    "adam": {"optimiser": "adam", "lr": 1e-3},
    "a decay that begins the optimiser anew": {"lr_decay": 0.5, "momentum": 0.9},
    "gsam": {"rho": 0.01, "alpha": 0.5, "momentum": 0.5},
    "penalty": {"penalty": 0.5, "loss_scale": "rising"},
    "running statistics": {"norm": "batch"},
    "bfloat16 and some epochs": {"dtype": "bfloat16", "keep": "0-2,4"},
    "whitened": {"zca": True, "holdout": 0.2},
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_goes_on_to_the_same_bytes(
    make_config: MakeConfig, contents: Contents, tmp_path: Path, recipe: dict[str, Any]
) -> None:
    course = {"epochs": 6, "num_experts": 2, "test_every": 4, **recipe}
    at_once = train_experts(make_config(out=tmp_path / "whole", **course))
    for until in (1, 3, 4, None):  # 4 is where the rate decays
        part = train_experts(make_config(**course, until_epoch=until, resume=until != 1))
        epochs = part.snapshots_kept
        assert epochs == [each for each in at_once.snapshots_kept if each <= (until or 6)]
        for expert in range(2):
            for epoch in epochs:
                assert torch.equal(part.snapshot(expert, epoch), at_once.snapshot(expert, epoch))
        assert (part.identity, part.fingerprint) == (at_once.identity, at_once.fingerprint)
    assert contents(part.path) == contents(at_once.path)


def test_a_part_needs_no_later_epoch_than_it_has(
    make_config: MakeConfig, tmp_path: Path, contents: Contents
) -> None:
    store = train_experts(make_config(epochs=4, until_epoch=2))
    assert store.manifest["trained_epochs"] == 2 and store.manifest["snapshots"] == [0, 1, 2, 3, 4]
    assert len(store.metrics(0)["train_loss"]) == 2 and "test_accuracy" in store.metrics(0)
    before = contents(store.path)
    train_experts(make_config(epochs=4, until_epoch=1, resume=True))  # has these epochs already
    assert contents(store.path) == before
    with pytest.raises(UserError, match="epochs 0-2, but 3 was asked for"):
        store.snapshot(0, 3)
    with pytest.raises(UserError, match=r"made with recipe\.epochs = 4, but this run has 2"):
        train_experts(make_config(epochs=2, resume=True))


def test_experts_that_are_not_extended_yet_are_missing(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    store = train_experts(make_config(epochs=3, until_epoch=1))
    store.resume({k: v for k, v in store.manifest.items() if k != "trained_epochs"})
    with pytest.raises(UserError, match=r"lacks 2 of 2 experts .* --resume"):
        Store.open(store.path)
    assert [each.status for each in verify(store.path)] == ["ok", "unfinished", "unfinished"]
    whole = train_experts(make_config(epochs=3, resume=True))
    assert [each.status for each in verify(whole.path)] == ["ok"] * 3


def test_who_reads_a_part_may_go_on_while_it_is_extended(make_config: MakeConfig) -> None:
    part = train_experts(make_config(epochs=3, until_epoch=2))
    before = part.snapshot(1, 2)
    train_experts(make_config(epochs=3, resume=True))
    assert torch.equal(part.snapshot(1, 2), before) and part.snapshot(0, 1).isfinite().all()


def test_a_part_is_trimmed_and_merged_with_its_state(
    make_config: MakeConfig, contents: Contents, tmp_path: Path
) -> None:
    """A trimmed or merged part extends to the same bytes as one training."""
    small = {"epochs": 4, "momentum": 0.9}
    part = train_experts(make_config(**small, until_epoch=2))
    trimmed = trim(part.path, tmp_path / "trimmed", keep="0-1", experts="0")
    assert trimmed.snapshots_kept == [0, 1]
    small = {**small, "keep": "0-1", "num_experts": 1}
    train_experts(make_config(**small, out=trimmed.path, resume=True))
    at_once = train_experts(make_config(**small, out=tmp_path / "at once"))
    assert contents(trimmed.path) == contents(at_once.path)
    other = train_experts(make_config(epochs=4, momentum=0.9, seed=1, out=tmp_path / "other"))
    with pytest.raises(UserError, match="their trained_epochs differ: 2 and None"):
        merge([part.path, other.path], tmp_path / "merged")


@pytest.mark.parametrize("until", [0, 3])
def test_epochs_beyond_the_course(make_config: MakeConfig, until: int) -> None:
    with pytest.raises(UserError, match=f"--until-epoch should be .*, but is {until}"):
        make_config(epochs=2, until_epoch=until)


def test_a_distillation_says_how_to_extend_the_store(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = train_experts(make_config(epochs=4, until_epoch=2))
    command = ["distill", "--experts", str(store.path), "--out", str(tmp_path / "d.safetensors")]
    command += [
        "--iterations",
        "1",
        "--student-steps",
        "1",
        "--expert-epochs",
        "1",
        "--lr-img",
        "1",
    ]

    def refusal(*flags: str) -> str:
        assert main([*command, *flags]) == 2
        return capsys.readouterr().err

    assert "epoch 4, but" in refusal() and "start epochs are" not in refusal("--quiet")
    message = refusal("--max-start-epoch", "3")
    assert "trained for the first 2 of 4 epochs" in message
    assert "--until-epoch 3 --resume" in message
    for flags in (["--init", "correct"], ["--labels", "soft"]):
        assert "--until-epoch 4 --resume" in refusal("--max-start-epoch", "1", *flags)
    assert main([*command, "--max-start-epoch", "2"]) == 0
    capsys.readouterr()
    assert main(["store", "ls", str(store.path)]) == 0
    shown = capsys.readouterr().out
    assert "trained to epoch 2 of 4" in shown and "on the test images after epoch 2 of 4" in shown
