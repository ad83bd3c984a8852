"""The configuration of expert training."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from trajmatch.block import NORMS
from trajmatch.errors import UserError
from trajmatch.experts.config import ConvNetSettings, ExpertConfig


def test_defaults_are_those_of_mtt() -> None:
    config = ExpertConfig(out=Path("store"))
    assert (config.num_experts, config.epochs, config.batch_size) == (100, 50, 256)
    assert (config.lr, config.momentum, config.weight_decay) == (0.01, 0.0, 0.0)
    assert (config.width, config.depth, config.norm) == (128, 3, "instance")
    assert config.dsa == "color_crop_cutout_flip_scale_rotate"


def test_every_norm_may_be_chosen() -> None:
    assert get_args(get_type_hints(ConvNetSettings)["norm"]) == tuple(NORMS)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_experts", 0),
        ("epochs", 0),
        ("batch_size", -1),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("lr", float("inf")),
        ("momentum", 1.0),
        ("momentum", -0.1),
        ("weight_decay", -1.0),
        ("weight_decay", float("inf")),
        ("width", 0),
        ("depth", 0),
        ("holdout", 1.0),
        ("holdout", -0.5),
        ("workers", -1),
    ],
)
def test_refuses_what_is_out_of_range(field: str, value: float) -> None:
    flag = "--" + field.replace("_", "-")
    with pytest.raises(UserError, match=f"{flag} should be .*, but is {value}"):
        ExpertConfig(out=Path("store"), **{field: value})


def test_configurations_need_no_torch() -> None:
    program = (
        "import sys, trajmatch.experts.config, trajmatch.evaluate.config; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
