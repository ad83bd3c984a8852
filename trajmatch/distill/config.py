"""Settings of a distillation and options of its run; importing them does not load PyTorch."""

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

#: Default end (exclusive) of the range of start epochs, if the experts have enough epochs.
DEFAULT_MAX_START_EPOCH = 20

#: Settings that apply only to one --init. Only :class:`DistillConfig` has ``scores``.
_OF_INIT = {"init_clusters": "representative", "init_beta": "difficulty", "scores": "difficulty"}


@dataclass(frozen=True, kw_only=True)
class MatchTrajectorySettings(Settings):
    """Settings that apply only to --objective match-trajectory."""

    student_steps: PositiveInt = 20
    """N: student steps on synthetic images per outer iteration (MTT: syn_steps)."""
    expert_epochs: Epochs = 2
    """M: number of expert epochs that the N student steps have to match (MTT: expert_epochs)."""
    min_start_epoch: Count = 0
    """First epoch that a trajectory segment may start from (MTT: 0; DATM: T-)."""
    max_start_epoch: Epochs | None = None
    """End of the range of start epochs: s is drawn uniformly from min..max-1 (MTT: max_start_epoch;
    DATM: T+). Default: 20, or less if the experts have fewer epochs."""
    first_max_start_epoch: PositiveInt | None = None
    """T: end of the range of start epochs in the first iteration. It grows linearly to
    --max-start-epoch, so that the easier early epochs come first (DATM). Default: no growth."""
    growth_iterations: Count = 0
    """E: number of iterations over which the range of start epochs grows (DATM:
    expansion_end_epoch)."""
    terms: Annotated[tuple[str, ...], Meta(min_length=1)] = ("final",)
    """Terms of the matching loss L, which is their sum: final (MTT; distance at the end),
    intermediate (AST; distances at the expert's epochs in between), intermediate-rising (AST; the
    same, weighted by j/M at epoch j), automatic (ATT; distance at the student step nearest to the
    expert's end), deep:ALPHA (PAD; distance at the end, without the first fraction ALPHA of the
    parameters), dropout:R (EDF; distance at the end, without the fraction R of the parameters that
    differ least), layers:PATTERN=WEIGHT,... (distance at the end, with a weight for the parameters
    whose names match PATTERN), or package.module:NAME for your own, with its settings after a
    colon."""
    balance: bool = False
    """Multiply the student's loss by kappa(s), which rises with s: below 1 for start epochs under
    half of --max-start-epoch, above 1 from there on (AST: balance_loss)."""
    perturb: NonNegative = 0.0
    """a: strength of the random perturbation of the student's initial weights (AST: weight_perturb,
    1)."""
    skip_above: Annotated[float, Meta(gt=0)] | None = None
    """Skip the update of an iteration whose matching loss is above this value (DATM: threshold,
    1)."""
    mask_gradient: NonNegative | None = None
    """beta: where the first expert's class activation map c is at least --mask-threshold, multiply
    the images' gradient by c + beta (EDF: beta, 1 or 2). Default: no mask."""
    mask_threshold: Annotated[float, Meta(ge=0, le=1)] | None = None
    """Threshold of the class activation map, from 0 to 1. Default: the map's mean over the image
    (EDF writes 0 for this)."""
    mask_every: PositiveInt = 100
    """Iterations between updates of the maps, which are computed from the current images (EDF:
    interval, 50 to 200)."""


@dataclass(frozen=True, kw_only=True)
class TrainAndTestSettings(Settings):
    """Settings that apply only to --objective train-and-test."""

    window: PositiveInt = 60
    """W: number of student steps in the window. The test loss is differentiated only through the
    last W steps of the student (RaT-BPTT: window)."""
    steps_before: str = "0:140"
    """K0:K1, or one number: the student takes K steps before the window, K drawn uniformly from
    K0..K1 (RaT-BPTT: minwindow is K0, totwindow - window is K1)."""
    real_batch: PositiveInt = 5000
    """Number of real images that a student is tested on; all of them if the data set has fewer
    (RaT-BPTT: 5000)."""
    student_optimiser: Literal["sgd", "adam"] = "sgd"
    """Optimiser of the student (RaT-BPTT: adam); Adam takes no --student-momentum."""
    student_weight_decay: NonNegative = 0.0
    """Weight decay of the student, added to the gradient."""
    window_choice: str = "uniform"
    """How the start of the window is drawn: uniform (see --steps-before), or
    gradient:high=LOSS,low=LOSS,temperature=TAU,spread=D (by the norm of the student's gradients;
    AT-BPTT, see docs/methods.md)."""

    def __post_init__(self) -> None:
        """Check the types, and that ``steps_before`` is a valid range."""
        super().__post_init__()
        first, last = self.before
        self.expect("steps_before", first <= last, "K0:K1 with 0 <= K0 <= K1, such as 0:140")

    @property
    def before(self) -> tuple[int, int]:
        """Smallest and largest number of steps before the window, ``(K0, K1)``."""
        # A text of another form gives the empty range (1, 0), which __post_init__ refuses.
        match = re.fullmatch(r"(\d{1,9})(?::(\d{1,9}))?", self.steps_before, re.ASCII)
        return (int(match[1]), int(match[2] or match[1])) if match else (1, 0)


@dataclass(frozen=True, kw_only=True)
class DistillSettings(NetworkSettings, TrainAndTestSettings, MatchTrajectorySettings):
    """Settings that determine the distilled set, together with experts, data and seed."""

    ipc: PositiveInt = 1
    """IPC: synthetic images per class (MTT: ipc). For parametrisations other than pixels: storage
    budget per class, counted in pixel images."""
    iterations: PositiveInt = 5000
    """Outer iterations (MTT: Iteration)."""
    matches: PositiveInt = 1
    """K: trajectory segments matched per outer iteration. Each has its own expert, start epoch s,
    student batches and augmentation; L is the mean of their losses (MTT: 1)."""
    spike_above: Annotated[float, Meta(gt=1)] | None = 20.0
    """Skip an update if the norm of the images' gradient exceeds this factor times the median of
    the last 100 norms. None: never skip, as in the papers' programs."""
    gradient: Literal["exact", "tesla"] = "exact"
    """Derivative of L through the student's steps: exact, or TESLA's approximation, which leaves
    out the Hessians: how the gradient of a step depends on the parameters."""
    lr_img: NonNegative | None = None
    """Learning rate of the synthetic images (MTT: lr_img). Default: that of the
    parametrisation if its own default optimiser is used, otherwise 100 for SGD and 0.001 for
    Adam."""
    optimiser_img: Literal["sgd", "adam"] | None = None
    """Optimiser of the synthetic images. Default: adam for --images implicit and for --objective
    train-and-test, otherwise sgd (MTT)."""
    clip_img: Annotated[float, Meta(gt=0)] | None = None
    """Clip image gradients to this multiple of the running mean of their norm. Default: 2 for
    --objective train-and-test (as in RaT-BPTT), otherwise no clipping."""
    lr_lr: NonNegative | None = None
    """Learning rate of the step size eta (MTT: lr_lr); 0 keeps eta fixed. Default: 0 for
    --objective train-and-test (as in RaT-BPTT), otherwise 1e-5."""
    lr_init: Positive | None = None
    """Initial value of eta, the student's step size (MTT: lr_teacher). Default: 0.01 (0.001 for
    --student-optimiser adam), or with --init-from the step size in that file."""
    momentum_img: Fraction = 0.5
    """SGD momentum of the images (MTT: 0.5, no flag)."""
    momentum_lr: Fraction = 0.5
    """SGD momentum of eta (MTT: 0.5, no flag)."""
    lr_param: Literal["exp", "raw"] = "exp"
    """How eta is updated: exp keeps it positive, raw is the plain SGD step of the papers."""
    batch_syn: PositiveInt | None = None
    """Synthetic images per student step (MTT: batch_syn). Default: all of them."""
    objective: str = "match-trajectory"
    """Objective: match-trajectory, train-and-test (RaT-BPTT; needs no experts), or
    package.module:NAME for your own."""
    loss: Literal["cross_entropy", "mse"] | None = None
    """Loss of the student: cross_entropy, or mse, the mean squared error to the target vectors of a
    data set (MKDT: --data npz:FILE?targets=NAME). With mse, the labels are the targets of the
    initial images and are not learned. Default: mse if the data set has targets."""
    images: str = "pixels"
    """Parametrisation of the images: pixels, flip (adds mirror images), upsample (smaller images,
    resized), frequency (coefficients of the cosine transform), implicit (one sine network per
    image), palette (few colours), or package.module:NAME for your own. Settings follow after a
    colon (upsample:factor=2). The number of images per class is the largest that fits the storage
    of --ipc pixel images."""
    freeze: NonNegative = 0
    """Number of stored images per class that are not learned (the first ones); a value below 1 is a
    fraction of them (SelMatch: 1 - alpha). 0: all are learned. With --images flip, each stored
    image is two of the set."""
    init: Literal["real", "noise", "representative", "correct", "difficulty"] = "real"
    """Initial synthetic images: real (random real images of each class) or noise (MTT: pix_init);
    representative: real images nearest to the centres of k-means on an expert's logits (AST);
    correct: random real images that an expert classifies correctly (DATM); difficulty: the hardest
    of each class by --scores (SelMatch)."""
    init_clusters: PositiveInt | None = None
    """K: clusters per class for --init representative. Default: IPC (AST: 10 or IPC)."""
    init_beta: NonNegative | None = None
    """beta: --init difficulty leaves out the hardest beta * IPC images of each class (SelMatch).
    Default: 0."""
    labels: Literal["hard", "soft"] = "hard"
    """Labels: hard (the class of each image), or soft: learned logits, initialised with the mean
    logits of the experts that classify the image correctly (DATM)."""
    label_experts: Literal["right", "first"] = "right"
    """Initial logits of soft labels: right, the mean of the experts that classify the image
    correctly, or first, those of expert 0 (as DATM does when the initial images are random real
    images)."""
    lr_label: NonNegative = 2.0
    """Learning rate of soft labels (DATM: lr_y); 0 keeps their initial values."""
    momentum_label: Fraction = 0.9
    """SGD momentum of soft labels (DATM: Momentum_y)."""
    ema: Fraction = 0.0
    """beta: decay of a moving average of the images; the average is evaluated and written (FTD:
    ema_decay). 0: no averaging."""
    dsa: str | None = None
    """A: differentiable augmentation of student batches (MTT: dsa_strategy). Default: the experts'
    augmentation; without experts, MTT's."""
    student_momentum: Fraction = 0.0
    """mu: momentum of the student's SGD (MTT: 0; AST: mom, 0.9)."""
    precise: bool = False
    """Avoid the CPU engine's convolution transforms that cost float32 accuracy; slower."""
    select: Literal["last", "holdout", "test-max"] = "last"
    """Synthetic set to keep as the result: last, the one after the last iteration; holdout, the one
    that is best on held-out images; or test-max, the one that is best on the test set (as in the
    papers' tables; its test accuracy is then not an honest estimate)."""
    eval_every: Count = 0
    """Iterations between evaluations (MTT: eval_it); the last iteration is evaluated too. 0:
    no evaluation."""
    eval_seeds: PositiveInt = 3
    """Networks to train per evaluation (MTT: num_eval)."""
    eval_epochs: PositiveInt = 1000
    """Epochs to train each evaluation network (MTT: epoch_eval_train)."""
    eval_protocol: Literal["mtt", "datm", "ast", "rat"] = "mtt"
    """Protocol of the evaluations, as in `trajmatch eval --protocol`."""

    def __post_init__(self) -> None:
        """Check the types and the consistency of the settings."""
        super().__post_init__()
        # Refuse settings that would have no effect, because the user expects one.
        for name in set(self.foreign) & {*self.chosen(DistillSettings)}:
            raise UserError(
                f"{flag(name)} has no meaning for --objective {self.objective}; leave it out"
            )
        whole = self.freeze < 1 or self.freeze % 1 == 0
        self.expect("freeze", whole, "a whole number, or a fraction below 1")
        if self.student_optimiser == "adam":
            self.expect("student_momentum", self.student_momentum == 0, "0 for Adam")
        # T- < T <= T+ (DATM). The store may still lower the default end, see `window_end`.
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
        for name, init in _OF_INIT.items():
            if getattr(self, name, None) is not None and self.init != init:
                raise UserError(
                    f"{flag(name)} applies only to --init {init}; leave it out, or choose "
                    f"--init {init}"
                )
        if self.select != "last" and self.eval_every == 0:
            raise UserError(
                f"--select {self.select} chooses among evaluated iterations, but --eval-every is "
                "0; say how often to evaluate, e.g. --eval-every 500"
            )

    @property
    def foreign(self) -> list[str]:
        """Names of the settings that apply only to another objective."""
        # A user's own objective shares the settings of match-trajectory.
        alone = self.objective == "train-and-test"
        kind = MatchTrajectorySettings if alone else TrainAndTestSettings
        return [each.name for each in fields(kind)]

    @property
    def needs_experts(self) -> str:
        """First setting known to need experts, for messages; empty if there is none."""
        needs = {
            "--objective match-trajectory": self.objective == "match-trajectory",
            f"--init {self.init}": self.init in ("correct", "representative", "difficulty"),
            "--labels soft": self.labels == "soft",
        }
        return next((setting for setting, does in needs.items() if does), "")

    def window_end(self, snapshots_kept: Collection[int]) -> int:
        """Return the end (exclusive) of the range of start epochs.

        It is above ``min_start_epoch``. Without ``max_start_epoch``, it is the largest number up to
        20 for which a store with the epochs ``snapshots_kept`` has both ends of every segment.
        """
        if self.max_start_epoch is not None:
            return self.max_start_epoch
        # A segment from epoch s needs the snapshots of epochs s and s + M.
        end, kept = self.min_start_epoch, set(snapshots_kept)
        while end < DEFAULT_MAX_START_EPOCH and {end, end + self.expert_epochs} <= kept:
            end += 1
        return max(end, self.min_start_epoch + 1)


@dataclass(frozen=True, kw_only=True)
class DistillConfig(RunOptions, DistillSettings):
    """Distil an image set by matching the trajectories of an expert store.

    Every part of MTT, FTD, AST and DATM is a separate option; the defaults are MTT's. --objective
    train-and-test needs no experts. Without experts, choose the network (--network, --width and so
    on), --zca, --holdout and --data here.
    """

    recipe: str | None = None
    """Recipe with the defaults of all other settings, e.g. datm/cifar10/ipc10 (`trajmatch recipes`
    lists them), or a .toml file of your own."""
    experts: Path | None = None
    """Expert store, as `trajmatch expert` writes it (MTT: buffer_path). Default: none;
    match-trajectory, soft labels, and initial images that experts choose need one."""
    out: Path
    """File of the distilled set: images, labels, step size, and everything needed to use them."""
    data: str | None = None
    """Data set. With --experts, needed only if the data have moved. Default without --experts: the
    shipped fashion-mnist-mini."""
    keep_rendered: bool = False
    """Store the rendered images beside their parameters, for programs that cannot render them.
    Always on for --images package.module:NAME."""
    init_from: Path | None = None
    """Distilled set with the initial images and labels. If it has fewer images than this run,
    --init chooses the rest."""
    scores: Path | None = None
    """Difficulty of the training images for --init difficulty: a file from `trajmatch score`, or a
    .npy file with one number per image in the order of the data set, higher meaning harder.
    Default: the file that `trajmatch score` wrote beside the store."""
    checkpoint_every: PositiveInt = 100
    """Iterations between checkpoints."""
    log: Path | None = None
    """File for the metrics of every iteration, as JSON lines. Default: beside the distilled set,
    ending in .jsonl."""
    snapshots: Count = 10
    """Number of times to save the current images during the run, for `trajmatch report` and
    `trajmatch show`, to a file beside the distilled set. The initial images are saved as well.
    0: save none."""
    tensorboard: Path | None = None
    """Also write the metrics for TensorBoard, to this folder."""
    wandb: str | None = None
    """Also send the metrics to this Weights & Biases project."""
    seed: Count = 0
    """Seed of every random draw of this run."""
    resume: bool = False
    """Continue from the checkpoint of an interrupted run; without a checkpoint, start from the
    beginning."""
    quiet: bool = False
    """Print nothing but errors."""
    tape_mb: Count | None = None
    """Memory in MB for activations that the student engine keeps so that the adjoint need not
    recompute them. It keeps as many steps as fit. The value does not change the results: on the CPU
    they agree to the bit, on a GPU up to rounding. Default: 1024 on the CPU, 16384 on a CUDA
    device, less if memory runs out."""
    micro_batch: PositiveInt | None = None
    """Largest number of synthetic images that go through the network at once. Smaller values need
    less memory and give the same gradient up to rounding. Default: all images of a student step,
    fewer if memory runs out."""
    graph: bool = True
    """On a CUDA device, record an outer iteration once as a CUDA graph, and replay it."""
    parallel: Literal["matches", "batch"] = "matches"
    """Work that several processes (torchrun) divide among themselves: matches, the K matches of an
    outer iteration (on the CPU, the same bytes as with one process); or batch, every student batch
    (the same result up to the order of sums)."""
    timeout: Positive = 600.0
    """Seconds that a process waits for the others in an outer iteration before it gives up."""

    def __post_init__(self) -> None:
        """Check the settings and their combination with experts and initial images."""
        super().__post_init__()
        # With --init-from, the file may bring all images and labels, so that --init and --labels
        # need no experts. If it lacks some, `Setup.store_for` raises the error later.
        given = self.init_from is not None and self.objective != "match-trajectory"
        if self.experts is None and self.needs_experts and not given:
            matching = self.needs_experts == "--objective match-trajectory"
            other = "--objective train-and-test" if matching else "--init real with --labels hard"
            raise UserError(
                f"{self.needs_experts} needs --experts, a store that `trajmatch expert` makes; "
                f"{other} needs none"
            )
        # The experts were trained with one network and preprocessing, which cannot change now.
        for name in () if self.experts is None else self.chosen(NetworkSettings):
            raise UserError(
                f"{flag(name)} is fixed by the store given with --experts; leave it out"
            )
        if self.init_from is not None and self.init_clusters is not None:
            raise UserError("--init-clusters has no effect with --init-from; leave one of them out")
        if self.init_from is None and (self.labels, self.init) == ("soft", "noise"):
            raise UserError(
                "--labels soft starts from the experts' logits for the initial images, which mean "
                "nothing for --init noise; use real, representative, correct or difficulty"
            )

    def last_epoch_read(self, snapshots_kept: Collection[int]) -> int:
        """Return the last expert epoch that a run reads, given the epochs that the store keeps."""
        chosen = self.init_from is None and self.init in ("correct", "representative")
        # These use the experts after their last epoch.
        if chosen or self.labels == "soft" or self.mask_gradient is not None:
            return max(snapshots_kept)
        return self.window_end(snapshots_kept) - 1 + self.expert_epochs

    @property
    def checkpoint_path(self) -> Path:
        """Path of the checkpoint, next to the distilled file."""
        return files.beside(self.out, ".checkpoint.safetensors")

    @property
    def log_path(self) -> Path:
        """Path of the metrics log, by default next to the distilled file."""
        return self.log if self.log is not None else files.beside(self.out, ".jsonl")

    @property
    def snapshots_path(self) -> Path:
        """Path of the image snapshots, next to the distilled file."""
        return files.beside(self.out, ".snapshots.safetensors")
