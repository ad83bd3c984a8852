"""What an expert run is: the fields are the flags of ``trajmatch expert``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trajmatch.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ExpertConfig:
    """Train experts on the real images and keep their trajectories (the defaults are MTT's).

    Raises:
        UserError: A value is out of its range.
    """

    out: Path
    """Folder of the expert store."""
    data: str | None = None
    """Data set, e.g. cifar10:ROOT; without it the shipped fashion-mnist-mini."""
    num_experts: int = 100
    """Experts to train."""
    epochs: int = 50
    """Epochs of each expert; there is a snapshot theta*_t after each and one before the first."""
    batch_size: int = 256
    """Real images per SGD step."""
    lr: float = 0.01
    """Learning rate of the experts."""
    momentum: float = 0.0
    """Momentum mu of the experts."""
    weight_decay: float = 0.0
    """Weight decay of the experts (added to the gradient, as torch.optim.SGD does)."""
    dsa: str = "color_crop_cutout_flip_scale_rotate"
    """Groups of the augmentation A (DSA), joined by underscores; none switches it off."""
    width: int = 128
    """Channels of the ConvNet."""
    depth: int = 3
    """Blocks of the ConvNet (papers: 3 for 32 pixels, 4 for 64, 5 for 128)."""
    norm: Literal["instance", "group", "layer", "none"] = "instance"
    """Norm of the ConvNet."""
    activation: Literal["relu", "leaky_relu", "sigmoid", "none"] = "relu"
    """Activation of the ConvNet."""
    pooling: Literal["average", "max", "none"] = "average"
    """Pooling of the ConvNet."""
    holdout: float = 0.0
    """Fraction of the training images that no expert and no initialisation sees."""
    seed: int = 0
    """Seed of everything random; expert i depends on it and on i only."""
    resume: bool = False
    """Train only the experts that an existing store lacks."""
    workers: int = 0
    """Experts trained at a time: processes on the CPU, in lockstep in one process on a GPU. 0
    chooses, and an expert is the same for every choice."""
    device: str = "cpu"
    """Where to train: cpu, cuda or cuda:N."""
    quiet: bool = False
    """Print no progress."""

    def __post_init__(self) -> None:
        """Checks the ranges; see the class."""
        _check(self.num_experts >= 1, "num_experts", "at least 1", self.num_experts)
        _check(self.epochs >= 1, "epochs", "at least 1", self.epochs)
        _check(self.batch_size >= 1, "batch_size", "at least 1", self.batch_size)
        _check(math.isfinite(self.lr) and self.lr > 0, "lr", "positive", self.lr)
        _check(0 <= self.momentum < 1, "momentum", "at least 0 and below 1", self.momentum)
        _check(
            math.isfinite(self.weight_decay) and self.weight_decay >= 0,
            "weight_decay",
            "at least 0",
            self.weight_decay,
        )
        _check(self.width >= 1, "width", "at least 1", self.width)
        _check(self.depth >= 1, "depth", "at least 1", self.depth)
        _check(0 <= self.holdout < 1, "holdout", "at least 0 and below 1", self.holdout)
        _check(self.workers >= 0, "workers", "at least 0", self.workers)


def _check(holds: bool, field: str, wanted: str, value: object) -> None:
    if not holds:
        flag = "--" + field.replace("_", "-")
        raise UserError(f"{flag} should be {wanted}, but is {value}")
