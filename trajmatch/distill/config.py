"""What a distillation run is told; importing this costs no torch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from trajmatch.errors import UserError

#: Fields that say where things are and how they are shown, and so change no byte of the images.
_NOT_IN_RECIPE = (
    "experts",
    "out",
    "data",
    "init_from",
    "checkpoint_every",
    "log",
    "seed",
    "resume",
    "quiet",
    "device",
    "graph",
    "tape_mb",
)


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Distil an image set by matching the trajectories of a store of experts (MTT)."""

    experts: Path
    """Store of expert trajectories, as `trajmatch expert` writes it."""
    out: Path
    """The artifact to write: images, labels, step size and all that is needed to use them."""
    data: str | None = None
    """Where the real images are, if not where the store says."""
    ipc: int = 1
    """IPC: synthetic images per class."""
    iterations: int = 5000
    """Outer iterations (MTT: Iteration)."""
    student_steps: int = 20
    """N: student steps on synthetic images in one outer iteration (MTT: syn_steps)."""
    matches: int = 1
    """K: trajectory segments matched in one outer iteration; each has an expert, a start epoch s,
    student batches and augmentation of its own, and the loss L is their mean (MTT: 1)."""
    expert_epochs: int = 2
    """M: epochs of the expert that the N student steps are to match (MTT: expert_epochs)."""
    min_start_epoch: int = 0
    """First epoch s that a trajectory segment may start from (MTT: 0)."""
    max_start_epoch: int = 20
    """End of the start epochs: s is uniform in min..max-1 (MTT: max_start_epoch)."""
    lr_img: float = 100.0
    """Learning rate of the synthetic images (MTT: lr_img)."""
    lr_lr: float = 1e-5
    """Learning rate of the step size eta (MTT: lr_lr)."""
    lr_init: float | None = None
    """First value of eta, the student's step size (MTT: lr_teacher). Default 0.01, or, with
    --init-from, the step size of that file."""
    momentum_img: float = 0.5
    """SGD momentum of the images (MTT: 0.5)."""
    momentum_lr: float = 0.5
    """SGD momentum of eta (MTT: 0.5)."""
    lr_param: Literal["exp", "raw"] = "exp"
    """How eta is updated: exp stays positive, raw is the papers' plain SGD step."""
    batch_syn: int | None = None
    """Synthetic images in one student step (MTT: batch_syn). Default: all of them."""
    init: Literal["real", "noise"] = "real"
    """First synthetic images: random real images of each class, or noise (MTT: pix_init)."""
    init_from: Path | None = None
    """Artifact whose images and labels to start from, instead of --init."""
    dsa: str | None = None
    """Differentiable augmentation of student batches (MTT: dsa_strategy). Default: the experts'."""
    student_momentum: float = 0.0
    """mu: momentum of the student's SGD (MTT: 0)."""
    precise: bool = False
    """Do without the CPU engine's transforms that cost float32 accuracy; slower."""
    select: Literal["last", "holdout", "test-max"] = "last"
    """Which iterate is the result: the last, the best on the store's holdout, or the best on the
    test set (as the papers' tables have it; not an honest estimate)."""
    eval_every: int = 0
    """Evaluate every so many iterations, and after the last; 0 never does."""
    eval_seeds: int = 3
    """Networks trained in each of these evaluations."""
    eval_epochs: int = 1000
    """Epochs that each of them is trained."""
    checkpoint_every: int = 100
    """Iterations from one checkpoint to the next."""
    log: Path | None = None
    """Metrics of every iteration as JSON lines. Default: beside the artifact, ending in .jsonl."""
    seed: int = 0
    """Seed of every random draw of this run."""
    resume: bool = False
    """Go on from the checkpoint of an interrupted run; starts afresh where there is none."""
    quiet: bool = False
    """Print nothing but errors."""
    device: str = "cpu"
    """Where to compute: cpu, cuda, cuda:1, ..."""
    tape_mb: int = 1024
    """MB that the CPU engine may keep activations in, to save the adjoint computing them again; it
    keeps those of as many steps as fit, and the result is the same to the bit."""
    graph: bool = True
    """On a CUDA device, record the launches of an outer iteration once and replay them."""

    def __post_init__(self) -> None:
        """Checks what can be checked before anything is read.

        Raises:
            UserError: A value is out of its range.
        """
        for name in (
            "ipc",
            "iterations",
            "student_steps",
            "matches",
            "expert_epochs",
            "eval_seeds",
            "eval_epochs",
            "checkpoint_every",
        ):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        for name in ("min_start_epoch", "eval_every", "seed", "tape_mb"):
            self._check(name, getattr(self, name) >= 0, "at least 0")
        for name in ("lr_img", "lr_lr"):
            value = getattr(self, name)
            self._check(name, math.isfinite(value) and value >= 0, "a number of at least 0")
        if self.lr_init is not None:
            positive = math.isfinite(self.lr_init) and self.lr_init > 0
            self._check("lr_init", positive, "a number above 0")
        for name in ("momentum_img", "momentum_lr", "student_momentum"):
            self._check(name, 0 <= getattr(self, name) < 1, "at least 0 and below 1")
        if self.batch_syn is not None:
            self._check("batch_syn", self.batch_syn >= 1, "at least 1")
        self._check(
            "max_start_epoch",
            self.max_start_epoch > self.min_start_epoch,
            f"above --min-start-epoch {self.min_start_epoch}",
        )
        for name, choices in (
            ("lr_param", ("exp", "raw")),
            ("init", ("real", "noise")),
            ("select", ("last", "holdout", "test-max")),
        ):
            self._check(name, getattr(self, name) in choices, f"one of {', '.join(choices)}")
        if self.select != "last" and self.eval_every == 0:
            raise UserError(
                f"--select {self.select} chooses among evaluated iterates, but --eval-every is 0; "
                "say how often to evaluate, e.g. --eval-every 500"
            )

    @property
    def checkpoint_path(self) -> Path:
        """Where the state of an unfinished run is kept: beside the artifact."""
        return self._beside(".checkpoint.safetensors")

    @property
    def log_path(self) -> Path:
        """Where the metrics go."""
        return self.log if self.log is not None else self._beside(".jsonl")

    def recipe(self) -> dict[str, Any]:
        """The fields that decide the result, without the seed: no path, device or display."""
        return {name: value for name, value in asdict(self).items() if name not in _NOT_IN_RECIPE}

    def _beside(self, ending: str) -> Path:
        return self.out.with_name(self.out.name.removesuffix(".safetensors") + ending)

    def _check(self, name: str, holds: bool, wanted: str) -> None:
        if not holds:
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag} should be {wanted}, but is {getattr(self, name)}")
