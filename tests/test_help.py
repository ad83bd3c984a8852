"""The help of every command says what the papers call an option, where they have a name for it."""

from __future__ import annotations

import dataclasses
import re

import pytest

from trajmatch.cli.main import main
from trajmatch.demo import DemoConfig
from trajmatch.distill.config import DistillConfig
from trajmatch.evaluate.config import EvalConfig
from trajmatch.experts.config import ExpertConfig

# What the papers, or the programs of their authors, call it: what the help has to contain.
SYMBOLS = {
    "expert": {
        "num_experts": "MTT: num_experts",
        "epochs": "theta*_t",
        "batch_size": "MTT: batch_train",
        "lr": "MTT: lr_teacher",
        "momentum": "mu:",
        "weight_decay": "MTT: l2",
        "optimiser": "AST: optim",
        "lr_decay": "AST: 0.6",
        "rho": "rho:",
        "alpha": "alpha:",
        "loss_scale": "AST: clipping loss",
        "penalty": "lambda:",
        "penalty_norm": "AST's code",
        "dsa": "A:",
        "zca": "MTT: zca",
        "network": "MTT: model",
        "depth": "papers: 3 for 32 pixels",
    },
    "distill": {
        "experts": "theta*",
        "ipc": "IPC:",
        "iterations": "MTT: Iteration",
        "student_steps": "N:",
        "matches": "K:",
        "expert_epochs": "M:",
        "min_start_epoch": "DATM: T-",
        "max_start_epoch": "DATM: T+",
        "first_max_start_epoch": "T:",
        "growth_iterations": "E:",
        "terms": "matching loss L",
        "balance": "kappa(s)",
        "perturb": "a:",
        "skip_above": "DATM: threshold",
        "gradient": "TESLA",
        "lr_img": "MTT: lr_img",
        "lr_lr": "eta",
        "lr_init": "eta",
        "momentum_img": "MTT: 0.5",
        "momentum_lr": "eta",
        "lr_param": "eta",
        "batch_syn": "MTT: batch_syn",
        "init": "MTT: pix_init",
        "init_clusters": "K:",
        "labels": "DATM",
        "label_experts": "DATM",
        "lr_label": "DATM: lr_y",
        "momentum_label": "DATM: Momentum_y",
        "ema": "beta:",
        "dsa": "A:",
        "student_momentum": "mu:",
        "select": "papers' tables",
        "eval_every": "MTT: eval_it",
        "eval_seeds": "MTT: num_eval",
        "eval_epochs": "MTT: epoch_eval_train",
    },
    "eval": {
        "network": "MTT: eval_mode",
        "seeds": "MTT: num_eval",
        "protocol": "MTT",
        "epochs": "MTT: epoch_eval_train",
        "batch_size": "MTT: batch_train",
    },
    "demo": {
        "num_experts": "MTT: num_experts",
        "epochs": "MTT: train_epochs",
        "ipc": "IPC:",
        "iterations": "MTT: Iteration",
        "student_steps": "N:",
        "expert_epochs": "M:",
        "max_start_epoch": "start epochs s",
        "lr_img": "MTT: lr_img",
        "lr_lr": "eta",
        "lr_init": "eta",
        "seeds": "MTT: num_eval",
        "eval_epochs": "MTT: epoch_eval_train",
    },
}

# What no paper has a name for: where things are, how they are shown, how they are computed.
OURS = {
    "expert": "recipe out data width norm activation pooling keep dtype holdout seed resume "
    "checkpoint_seconds test_every max_time workers device quiet",
    "distill": "recipe out data init_from spike_above precise eval_protocol checkpoint_every "
    "max_time log snapshots tensorboard wandb seed resume quiet device tape_mb micro_batch graph "
    "parallel timeout",
    "eval": "file out data equal_steps random_baseline k_center k_center_store whole_real json "
    "resume max_time seed device quiet",
    "demo": "out data width depth seed device resume quiet",
}
CONFIGS = {
    "expert": ExpertConfig,
    "distill": DistillConfig,
    "eval": EvalConfig,
    "demo": DemoConfig,
}


@pytest.mark.parametrize("command", CONFIGS)
def test_every_option_has_the_papers_symbol(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    names = [field.name for field in dataclasses.fields(CONFIGS[command])]
    symbols, ours = SYMBOLS[command], OURS[command].split()
    assert sorted(names) == sorted([*symbols, *ours])
    # An option's help ends where the next one begins.
    flags = {name: "--" + name.replace("_", "-") for name in names}
    for name, symbol in symbols.items():
        begin = re.search(rf"{flags[name]} (?=[A-Z{{\[])", text) or re.search(
            rf"{flags[name]} ", text
        )
        assert begin is not None, name
        help_of_option = text[begin.end() :].split("(default: ")[0]
        assert symbol in help_of_option, f"{flags[name]}: {help_of_option}"
