"""Settings of a distillation and options of its run; importing this costs no torch."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from trajmatch import files
from trajmatch.errors import UserError
from trajmatch.experts.config import NetworkSettings
from trajmatch.experts.manifest import Epochs
from trajmatch.run_options import RunOptions
from trajmatch.schema import Count, Fraction, NonNegative, Positive, PositiveInt, Settings, flag

#: End of the start epochs where nothing else is said and the experts have enough epochs.
DEFAULT_MAX_START_EPOCH = 20


@dataclass(frozen=True, kw_only=True)
class MatchTrajectorySettings(Settings):
    """Settings that only --objective match-trajectory has."""

    student_steps: PositiveInt = 20
    """N: student steps on synthetic images in one outer iteration (MTT: syn_steps)."""
    expert_epochs: Epochs = 2
    """M: epochs of the expert that the N student steps are to match (MTT: expert_epochs)."""
    min_start_epoch: Count = 0
    """First epoch s that a trajectory segment may start from (MTT: 0; DATM: T-)."""
    max_start_epoch: Epochs | None = None
    """End of the start epochs: s is uniform in min..max-1 (MTT: max_start_epoch; DATM: T+).
    Default: 20, or fewer where the experts have fewer epochs."""
    first_max_start_epoch: PositiveInt | None = None
    """T: end of the start epochs in the first iteration, from which it grows evenly to
    --max-start-epoch, from easy to hard (DATM). Default: it does not grow."""
    growth_iterations: Count = 0
    """E: iterations until it has grown (DATM: expansion_end_epoch)."""
    terms: Annotated[tuple[str, ...], Meta(min_length=1)] = ("final",)
    """Terms whose sum is the matching loss L: final (MTT), intermediate (AST; the epochs of the
    expert in between), intermediate-rising (AST; these weighted by j/M), automatic (ATT; the
    nearest step), deep:ALPHA (PAD), dropout:R (EDF), layers:PATTERN=WEIGHT,..., or
    package.module:NAME of one of your own, with settings behind a colon."""
    balance: bool = False
    """Scale the student's loss by kappa(s), small for early start epochs (AST: balance_loss)."""
    perturb: NonNegative = 0.0
    """a: strength of the random perturbation of the weights that a student starts from (AST:
    weight_perturb, 1)."""
    skip_above: Annotated[float, Meta(gt=0)] | None = None
    """Leave out the update where the matching loss is above this (DATM: threshold, 1)."""
    mask_gradient: NonNegative | None = None
    """beta: multiply the images' gradient by c + beta where c, the activation map of the first
    expert, is at least --mask-threshold (EDF: beta, 1 or 2). Default: leave it as it is."""
    mask_threshold: Annotated[float, Meta(ge=0, le=1)] | None = None
    """Threshold of that map, from 0 to 1. Default: its mean over the image (EDF: 0 means that)."""
    mask_every: PositiveInt = 100
    """Iterations between new maps, of the images of the moment (EDF: interval, 50 to 200)."""


@dataclass(frozen=True, kw_only=True)
class TrainAndTestSettings(Settings):
    """Settings that only --objective train-and-test has."""

    window: PositiveInt = 60
    """W: last steps of a student, which are differentiated (RaT-BPTT: window)."""
    steps_before: str = "0:140"
    """K0:K1: the student takes K steps before the window, uniform in K0..K1 (RaT-BPTT: minwindow,
    and totwindow - window), or one number."""
    real_batch: PositiveInt = 5000
    """Real images that a student is tested on, at most all of them (RaT-BPTT: 5000)."""
    student_optimiser: Literal["sgd", "adam"] = "sgd"
    """Optimiser of the student (RaT-BPTT: adam); Adam takes no --student-momentum."""
    student_weight_decay: NonNegative = 0.0
    """Weight decay of the student, added to the gradient."""
    window_choice: str = "uniform"
    """Start of the window: uniform in K0..K1; or there by the norm of the student's gradients,
    gradient:high=LOSS,low=LOSS,temperature=TAU,spread=D (AT-BPTT; docs/methods.md)."""

    def __post_init__(self) -> None:
        """Check the types, and that the steps before the window are a range."""
        super().__post_init__()
        first, last = self.before
        self.expect("steps_before", first <= last, "K0:K1 with 0 <= K0 <= K1, such as 0:140")

    @property
    def before(self) -> tuple[int, int]:
        """K0 and K1, the fewest and the most steps before the window."""
        match = re.fullmatch(r"(\d{1,9})(?::(\d{1,9}))?", self.steps_before, re.ASCII)
        return (int(match[1]), int(match[2] or match[1])) if match else (1, 0)


@dataclass(frozen=True, kw_only=True)
class DistillSettings(NetworkSettings, TrainAndTestSettings, MatchTrajectorySettings):
    """Settings that decide the distilled set, beside experts, data and seed."""

    ipc: PositiveInt = 1
    """IPC: synthetic images per class (MTT: ipc); with another parametrisation than pixels, the
    number of images whose values may be stored."""
    iterations: PositiveInt = 5000
    """Outer iterations (MTT: Iteration)."""
    matches: PositiveInt = 1
    """K: trajectory segments matched in one outer iteration; each has an expert, a start epoch s,
    student batches and augmentation of its own, and the loss L is their mean (MTT: 1)."""
    spike_above: Annotated[float, Meta(gt=1)] | None = 20.0
    """Skip updates whose gradient of the images exceeds the median of the last 100 by this factor;
    None never does, as in the papers' programs."""
    gradient: Literal["exact", "tesla"] = "exact"
    """Derivative of L through the student's steps: exact, or the approximation of
    TESLA, which neglects how later steps depend on earlier ones."""
    lr_img: NonNegative | None = None
    """Learning rate of the synthetic images (MTT: lr_img). Default: 100 with SGD and 0.001 with
    Adam, or that of the parametrisation."""
    optimiser_img: Literal["sgd", "adam"] | None = None
    """Optimiser of the synthetic images. Default: sgd (MTT), and adam for --images implicit and
    --objective train-and-test."""
    clip_img: Annotated[float, Meta(gt=0)] | None = None
    """Shorten gradients of the images to this multiple of their running norm. Default: none, and 2
    for --objective train-and-test (RaT-BPTT)."""
    lr_lr: NonNegative = 1e-5
    """Learning rate of the step size eta (MTT: lr_lr)."""
    lr_init: Positive | None = None
    """First value of eta, the student's step size (MTT: lr_teacher). Default 0.01, or, with
    --init-from, the step size of that file."""
    momentum_img: Fraction = 0.5
    """SGD momentum of the images (MTT: 0.5, no flag)."""
    momentum_lr: Fraction = 0.5
    """SGD momentum of eta (MTT: 0.5, no flag)."""
    lr_param: Literal["exp", "raw"] = "exp"
    """Update of eta: exp stays positive, raw is the papers' plain SGD step."""
    batch_syn: PositiveInt | None = None
    """Synthetic images in one student step (MTT: batch_syn). Default: all of them."""
    objective: str = "match-trajectory"
    """Objective: match-trajectory, train-and-test (RaT-BPTT; needs no experts), or
    package.module:NAME of your own."""
    loss: Literal["cross_entropy", "mse"] | None = None
    """Loss of the student: cross_entropy, or mse, the mean squared error with the target vectors of
    a data set (MKDT: --data npz:FILE?targets=NAME). With mse, labels are the targets of the first
    images, which stay as they are. Default: mse where the data set has targets."""
    images: str = "pixels"
    """Parametrisation of the images: pixels, flip (with mirror images), upsample (smaller images,
    resized), frequency (coefficients of the cosine transform), implicit (a sine network each),
    palette (few colours), or package.module:NAME of your own; settings follow a colon
    (upsample:factor=2). There are as many images as the values of --ipc images pay for."""
    freeze: NonNegative = 0
    """Images of each class, the first ones, that stay as they begin: a number, or, below 1, a part
    of them (SelMatch: 1 - alpha)."""
    init: Literal["real", "noise", "representative", "correct", "difficulty"] = "real"
    """First synthetic images: random real images of each class, or noise (MTT: pix_init); real
    images nearest to the centres of k-means in an expert's logits (AST); random real images that
    an expert classifies correctly (DATM); or the hardest of each class by --scores (SelMatch)."""
    init_clusters: PositiveInt | None = None
    """K: clusters of each class for --init representative. Default: IPC (AST: 10 or IPC)."""
    init_beta: NonNegative | None = None
    """beta: --init difficulty leaves out the hardest beta IPC images of each class (SelMatch).
    Default: 0."""
    labels: Literal["hard", "soft"] = "hard"
    """Labels: the class of each image, or logits that begin as the mean of the experts that are
    right and are then learned (DATM)."""
    label_experts: Literal["right", "first"] = "right"
    """Logits that soft labels begin with: the mean of the experts that are right, or those of
    expert 0 (DATM, for random real images)."""
    lr_label: NonNegative = 2.0
    """Learning rate of soft labels (DATM: lr_y); 0 keeps them as they begin."""
    momentum_label: Fraction = 0.9
    """SGD momentum of soft labels (DATM: Momentum_y)."""
    ema: Fraction = 0.0
    """beta: decay of the moving average of the images, which is then what is evaluated and written
    (FTD: ema_decay); 0 takes the images themselves."""
    dsa: str | None = None
    """A: differentiable augmentation of student batches (MTT: dsa_strategy). Default: that of the
    experts."""
    student_momentum: Fraction = 0.0
    """mu: momentum of the student's SGD (MTT: 0; AST: mom, 0.9)."""
    precise: bool = False
    """Do without the CPU engine's transforms that cost float32 accuracy; slower."""
    select: Literal["last", "holdout", "test-max"] = "last"
    """Iterate that becomes the result: the last, the best on the store's holdout, or the best on
    the test set (as the papers' tables have it; not an honest estimate)."""
    eval_every: Count = 0
    """Iterations between evaluations (MTT: eval_it); the last is evaluated too. 0 never does."""
    eval_seeds: PositiveInt = 3
    """Networks trained in each of these evaluations (MTT: num_eval)."""
    eval_epochs: PositiveInt = 1000
    """Epochs that each of them is trained (MTT: epoch_eval_train)."""
    eval_protocol: Literal["mtt", "datm", "ast", "rat"] = "mtt"
    """Protocol of their training and test, as in `trajmatch eval --protocol`."""

    def __post_init__(self) -> None:
        """Check the types, and what one setting asks of another."""
        super().__post_init__()
        for name in set(self.foreign) & {*self.chosen(DistillSettings)}:
            raise UserError(
                f"{flag(name)} has no meaning for --objective {self.objective}; leave it out"
            )
        if self.student_optimiser == "adam":
            self.expect("student_momentum", self.student_momentum == 0, "0 for Adam")
        start, first = self.min_start_epoch, self.first_max_start_epoch
        end = self.max_start_epoch or DEFAULT_MAX_START_EPOCH
        self.expect("min_start_epoch", start < end, f"below --max-start-epoch {end}")
        if first is not None:
            window = f"above --min-start-epoch {start} and at most --max-start-epoch {end}"
            self.expect("first_max_start_epoch", start < first <= end, window)
        growth = "0 without --first-max-start-epoch, and at least 1 with it"
        grows = self.growth_iterations > 0
        self.expect("growth_iterations", grows == (first is not None), growth)
        if self.mask_gradient is None and (self.mask_threshold, self.mask_every) != (None, 100):
            raise UserError("--mask-threshold and --mask-every need --mask-gradient")
        for name, init in (("init_clusters", "representative"), ("init_beta", "difficulty")):
            if getattr(self, name) is not None and self.init != init:
                raise UserError(f"{flag(name)} is for --init {init} alone; leave one of them out")
        if self.select != "last" and self.eval_every == 0:
            raise UserError(
                f"--select {self.select} chooses among evaluated iterates, but --eval-every is 0; "
                "say how often to evaluate, e.g. --eval-every 500"
            )

    @property
    def foreign(self) -> list[str]:
        """Settings that only another objective has."""
        alone = self.objective == "train-and-test"
        kind = MatchTrajectorySettings if alone else TrainAndTestSettings
        return [each.name for each in fields(kind)]

    @property
    def needs_experts(self) -> str:
        """The setting that needs experts; empty if none is known to."""
        needs = {
            "--objective match-trajectory": self.objective == "match-trajectory",
            f"--init {self.init}": self.init in ("correct", "representative", "difficulty"),
            "--labels soft": self.labels == "soft",
        }
        return next((setting for setting, does in needs.items() if does), "")

    def window_end(self, snapshots_kept: Collection[int]) -> int:
        """Find the end of the start epochs for experts with these epochs.

        Args:
            snapshots_kept: Epochs whose parameters a store has.

        Returns:
            ``max_start_epoch`` where it is given, or else the largest end up to 20 for which the
            store has every segment; above ``min_start_epoch`` in any case.
        """
        if self.max_start_epoch is not None:
            return self.max_start_epoch
        end, kept = self.min_start_epoch, set(snapshots_kept)
        while end < DEFAULT_MAX_START_EPOCH and {end, end + self.expert_epochs} <= kept:
            end += 1
        return max(end, self.min_start_epoch + 1)


@dataclass(frozen=True, kw_only=True)
class DistillConfig(RunOptions, DistillSettings):
    """Distil an image set by matching the trajectories of a store of experts.

    Every part of MTT, FTD, AST and DATM is a choice of its own; the defaults are MTT's. With
    --objective train-and-test there need be no experts: the network (--network, --width and so on),
    --zca, --holdout and --data are then settings of this run.
    """

    recipe: str | None = None
    """Recipe whose settings are the defaults of all others, e.g. datm/cifar10/ipc10 (`trajmatch
    recipes` lists them), or a file of your own, ending in .toml."""
    experts: Path | None = None
    """Store of expert trajectories theta*, as `trajmatch expert` writes it (MTT: buffer_path).
    Default: none, which match-trajectory, chosen images and soft labels cannot do without."""
    out: Path
    """The artifact to write: images, labels, step size and all that is needed to use them."""
    data: str | None = None
    """Real images, if they are not where the store says; without --experts the data set, by
    default the shipped fashion-mnist-mini."""
    keep_rendered: bool = False
    """Keep the rendered images in the artifact beside the parameters that they are made of, for
    programs that know no parametrisation. Always kept with package.module:NAME."""
    init_from: Path | None = None
    """Artifact whose images and labels to start from, instead of --init; the images that it lacks
    come from --init."""
    scores: Path | None = None
    """Difficulty of the training images for --init difficulty: a file of `trajmatch score`, or a
    .npy file with a number for each, in the order of the data set, higher for harder ones. Default:
    what `trajmatch score` wrote beside the store."""
    checkpoint_every: PositiveInt = 100
    """Iterations from one checkpoint to the next."""
    log: Path | None = None
    """Metrics of every iteration as JSON lines. Default: beside the artifact, ending in .jsonl."""
    snapshots: Count = 10
    """Number of times to keep the images of the moment, for `trajmatch report` and `trajmatch
    show`, in a file beside the artifact; 0 never does."""
    tensorboard: Path | None = None
    """Folder to write the metrics to for TensorBoard as well."""
    wandb: str | None = None
    """Project of Weights & Biases to send the metrics to as well."""
    seed: Count = 0
    """Seed of every random draw of this run."""
    resume: bool = False
    """Go on from the checkpoint of an interrupted run; starts afresh where there is none."""
    quiet: bool = False
    """Print nothing but errors."""
    tape_mb: Count | None = None
    """MB that the student engine may keep activations in, to save the adjoint computing them again;
    it keeps as many steps' as fit, and the result is the same, on the CPU to the bit.
    Default: 1024, and on a CUDA device 16384, fewer where memory runs out."""
    micro_batch: PositiveInt | None = None
    """Synthetic images that go through the network at once, where a student step has more: less
    memory, and the same gradient but for rounding. Default: all, and fewer where memory runs
    out."""
    graph: bool = True
    """On a CUDA device, record the launches of an outer iteration once and replay them."""
    parallel: Literal["matches", "batch"] = "matches"
    """Work that several processes (torchrun) divide among them: the K matches of an outer
    iteration, for the same bytes as one process on the CPU; or every student batch, for the result
    of one process up to the order of sums."""
    timeout: Positive = 600.0
    """Seconds that one of several processes waits for the others in an outer iteration before it
    gives up."""

    def __post_init__(self) -> None:
        """Check the settings, and what they ask of the images that the run begins with."""
        super().__post_init__()
        given = self.init_from is not None and self.objective != "match-trajectory"
        if self.experts is None and self.needs_experts and not given:
            matching = self.needs_experts == "--objective match-trajectory"
            other = "--objective train-and-test" if matching else "another choice"
            raise UserError(
                f"{self.needs_experts} needs --experts, a store that `trajmatch expert` makes; "
                f"{other} does without"
            )
        for name in () if self.experts is None else self.chosen(NetworkSettings):
            raise UserError(
                f"{flag(name)} is decided by the store that --experts names; leave it out"
            )
        if self.init_from is not None and self.init_clusters is not None:
            raise UserError("--init-clusters is not for --init-from; leave one of them out")
        if self.scores is not None and self.init != "difficulty":
            raise UserError("--scores is for --init difficulty alone; leave one of them out")
        if self.init_from is None and (self.labels, self.init) == ("soft", "noise"):
            raise UserError(
                "--labels soft begins with what the experts say of the first images, and they can "
                "say nothing of --init noise; use real, representative, correct or difficulty"
            )

    def last_epoch_read(self, snapshots_kept: Collection[int]) -> int:
        """Return the last epoch of the experts that a run reads.

        Args:
            snapshots_kept: Epochs kept of the experts' whole course.
        """
        chosen = self.init_from is None and self.init in ("correct", "representative")
        if (
            chosen or self.labels == "soft" or self.mask_gradient is not None
        ):  # what the experts say at the end of their course
            return max(snapshots_kept)
        return self.window_end(snapshots_kept) - 1 + self.expert_epochs

    @property
    def checkpoint_path(self) -> Path:
        """File of the state of an unfinished run, beside the artifact."""
        return files.beside(self.out, ".checkpoint.safetensors")

    @property
    def log_path(self) -> Path:
        """File of the metrics."""
        return self.log if self.log is not None else files.beside(self.out, ".jsonl")

    @property
    def snapshots_path(self) -> Path:
        """File of the images at several iterations, beside the artifact."""
        return files.beside(self.out, ".snapshots.safetensors")
