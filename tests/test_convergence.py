"""The methods, scaled down to the shipped data: one image per class teaches more than a real one.

Each is a recipe of the papers with the settings that its method is about, and with few, small
experts, few iterations and the step sizes that these take. A test prints the command that it runs.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from trajmatch.cli.main import main

SCALED = """
--data fashion-mnist-mini --num-experts 4 --expert.epochs 6 --keep 0-6 --width 32 --ipc 1
--student-steps 20 --max-start-epoch 4 --seeds 3
"""
STEPS = "--iterations 200 --lr-img 300 --lr-lr 1e-5 --lr-init 0.02"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:recipe .* is for the data set cifar10, but the data is fashion")
@pytest.mark.parametrize(
    ("recipe", "own", "gain"),
    [
        ("mtt/cifar10/ipc1", STEPS, 18),
        ("ftd/cifar10/ipc1", f"{STEPS} --ema 0.99", 18),
        ("ast/cifar10/ipc10", "--iterations 400 --lr-img 100 --lr-lr 1e-6 --lr-init 0.003", 18),
        ("datm/cifar10/ipc1", STEPS, 16),
    ],
)
def test_a_method_gains_on_random_real_images(
    recipe: str, own: str, gain: float, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    argv = ["run", "--recipe", recipe, *shlex.split(SCALED + own), "--out", str(out)]
    print("trajmatch", shlex.join(argv))
    assert main(argv) == 0
    assert json.loads((out / "summary.json").read_text())["improvement"] >= gain
