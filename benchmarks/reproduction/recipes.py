"""What can be reproduced: published settings, and the number they are published with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

#: Shares of the budget after which experts and distillation end; the rest is for the evaluation.
SHARES = {"experts": 0.35, "distillation": 0.85}


@dataclass(frozen=True)
class Published:
    """An accuracy that a paper reports, in percent.

    Attributes:
        mean: Mean over networks.
        std: Standard deviation over networks.
        source: Where it stands.
        random_real: What the same number of random real images give, mean and deviation.
        random_source: Where that stands.
        remarks: What one has to know before comparing.
    """

    mean: float
    std: float
    source: str
    random_real: tuple[float, float]
    random_source: str
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """Settings of one published cell.

    Attributes:
        data: Name of the data set.
        experts: Fields of :class:`trajmatch.experts.ExpertConfig`; ``num_experts`` is a limit.
        distill: Fields of :class:`trajmatch.distill.DistillConfig`; ``iterations`` is a limit.
        eval_seeds: Networks of each evaluation, a limit too.
        eval_epochs: Epochs of each of them.
        published: The number to compare with, if there is one.
        departures: What is not as published whatever the budget.
        checkpoint_every: Iterations after which the time is looked at.
    """

    data: str
    experts: dict[str, Any]
    distill: dict[str, Any]
    eval_seeds: int
    eval_epochs: int
    published: Published | None = None
    departures: tuple[str, ...] = ()
    checkpoint_every: int = 20


_SELECTION = (
    "the table has the best of several checkpoints, chosen on the test set; here it is the last "
    "iterate"
)
_ZCA = "the images are normalised per channel; published with ZCA whitening"


def _expert_epochs(used: int) -> str:
    return (
        f"experts are trained for {used} epochs instead of 50: no later snapshot is used, and the "
        "step size does not depend on the number"
    )


#: By name, ``method/data set/ipcN``. MTT: Cazenavette et al., CVPR 2022; its settings as the
#: authors gave them to DC-BENCH.
RECIPES = {
    "mtt/cifar10/ipc1": Recipe(
        data="cifar10",
        experts={"num_experts": 100, "epochs": 3},
        distill={
            "ipc": 1,
            "iterations": 5000,
            "student_steps": 50,
            "expert_epochs": 2,
            "max_start_epoch": 2,
            "lr_img": 100.0,
            "lr_lr": 1e-7,
            "lr_init": 0.01,
        },
        eval_seeds=5,
        eval_epochs=1000,
        published=Published(
            46.3, 0.8, "MTT, as NCFM quotes it", (15.4, 0.3), "DATM", (_SELECTION,)
        ),
        departures=(_ZCA, _expert_epochs(3)),
    ),
    "mtt/cifar10/ipc10": Recipe(
        data="cifar10",
        experts={"num_experts": 100, "epochs": 21},
        distill={
            "ipc": 10,
            "iterations": 5000,
            "student_steps": 30,
            "expert_epochs": 2,
            "max_start_epoch": 20,
            "lr_img": 100.0,
            "lr_lr": 1e-5,
            "lr_init": 0.001,
        },
        eval_seeds=5,
        eval_epochs=1000,
        published=Published(
            65.3, 0.7, "MTT, as NCFM quotes it", (31.0, 0.5), "DATM", (_SELECTION,)
        ),
        departures=(_ZCA, _expert_epochs(21)),
    ),
    # Everything in a moment, to try the program: what it reaches says nothing.
    "smoke/fashion-mnist-mini/ipc1": Recipe(
        data="fashion-mnist-mini",
        experts={"num_experts": 2, "epochs": 1, "width": 4, "depth": 2, "batch_size": 512},
        distill={
            "ipc": 1,
            "iterations": 12,
            "student_steps": 3,
            "expert_epochs": 1,
            "max_start_epoch": 1,
            "lr_img": 30.0,
            "lr_init": 0.02,
        },
        eval_seeds=2,
        eval_epochs=5,
        checkpoint_every=4,
    ),
}
