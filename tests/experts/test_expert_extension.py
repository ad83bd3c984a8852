"""Experts trained for the first epochs of their course: what is there, and how they go on."""

from __future__ import annotations

import json
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
