"""Write one small file of each format, as data for the test that later releases still read them.

    python tests/formats/make.py FOLDER

``tests/formats/0.1`` was written so by release 0.1. Half of what is written is finished, the other
half was interrupted and has its checkpoints.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from trajmatch import interruption
from trajmatch.distill import DistillConfig, distill
from trajmatch.evaluate import EvalConfig
from trajmatch.evaluate.distilled import evaluate_artifact
from trajmatch.experts import ExpertConfig, train_experts

NETWORK = {"width": 4, "depth": 1, "norm": "group"}


class Stop:
    """A display of progress that interrupts its run at a number of steps."""

    def __init__(self, number: int) -> None:
        self._number = number

    def update(self, done: int, **numbers: Any) -> None:
        if done == self._number:
            signal.raise_signal(signal.SIGTERM)


def interrupted(run: Callable[..., object], config: object, number: int) -> None:
    with interruption.signals(), contextlib.suppress(interruption.Interrupted):
        run(config, Stop(number))


def configurations(folder: Path) -> dict[str, Any]:
    """The runs by the name of what they write."""
    data = f"npz:{folder / 'tiny.npz'}"
    expert = ExpertConfig(
        out=folder / "experts", data=data, num_experts=2, epochs=3, batch_size=8, workers=1,
        momentum=0.5, holdout=0.25, seed=3, quiet=True, **NETWORK,
    )  # fmt: skip
    distilled = DistillConfig(
        experts=folder / "experts", out=folder / "distilled.safetensors", iterations=4,
        student_steps=3, max_start_epoch=1, lr_img=10, eval_every=2, eval_seeds=1, eval_epochs=2,
        select="holdout", matches=2, quiet=True,
    )  # fmt: skip
    evaluation = EvalConfig(
        file=distilled.out,
        out=folder / "evaluation",
        seeds=2,
        epochs=2,
        network=("convnet",),
        data=data,
    )
    change = dataclasses.replace
    return {
        "experts": expert,
        "distilled.safetensors": distilled,
        "evaluation": evaluation,
        # whitened images, learned labels, a moving average and Adam: what else files can hold
        "whitened": change(expert, out=folder / "whitened", zca=True, optimiser="adam", momentum=0,
                           dtype="bfloat16", keep="0-2", norm="batch", holdout=0),
        "soft.safetensors": change(
            distilled, experts=folder / "whitened", out=folder / "soft.safetensors", labels="soft",
            terms=("final", "intermediate"), ema=0.5, select="last", skip_above=1e6, dsa="flip",
        ),
        "unfinished-experts": change(expert, out=folder / "unfinished-experts"),
        "unfinished.safetensors": change(
            distilled, out=folder / "unfinished.safetensors", labels="soft", ema=0.9, init="correct"
        ),
        "unfinished-evaluation": change(evaluation, out=folder / "unfinished-evaluation"),
    }  # fmt: skip


#: Each kind of run, and the step at which an unfinished one is interrupted.
RUNS: dict[type[Any], tuple[Callable[..., object], int]] = {
    ExpertConfig: (train_experts, 5),
    DistillConfig: (distill, 3),
    EvalConfig: (evaluate_artifact, 5),
}


def make(folder: Path) -> None:
    """Write everything into a new folder."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    parts = {"train": 24, "test": 12}
    arrays = {f"x_{name}": draw.integers(0, 256, (n, 8, 8), np.uint8) for name, n in parts.items()}
    labels = {f"y_{name}": np.arange(n) % 3 for name, n in parts.items()}
    np.savez_compressed(folder / "tiny.npz", **arrays, **labels)
    for name, config in configurations(folder).items():
        run, step = RUNS[type(config)]
        if name.startswith("unfinished"):
            interrupted(run, config, step)
        else:
            run(config)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
