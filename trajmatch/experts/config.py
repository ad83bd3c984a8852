"""Settings of experts and options of their training."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta

from trajmatch.errors import UserError, as_user_error
from trajmatch.experts.manifest import MOST_EXPERTS, Epochs
from trajmatch.run_options import RunOptions
from trajmatch.schema import Count, Fraction, NonNegative, Positive, PositiveInt, Settings

_GROWTH = tuple[Annotated[float, Meta(gt=0, le=1)], PositiveInt]
_DROPS = tuple[tuple[PositiveInt, Fraction], ...]


class Schedule(NamedTuple):
    """Curriculum of PAD (arXiv 2408.03360): the part of each class that an epoch sees.

    Epochs count from 0, as in PAD's code. Epoch ``e`` sees the easiest fraction
    ``min(1, first + (1 - first) e / whole)``; PAD calls ``first`` IR and ``whole`` AEE. ``drops``
    are ascending pairs ``(E, R)``: epochs after ``E`` leave out the easiest fraction ``R``.
    """

    first: float = 1.0
    whole: int = 1
    drops: tuple[tuple[int, float], ...] = ()

    @classmethod
    def parse(cls, curriculum: str | None, drop_easy: str | None) -> "Schedule":
        """Parse ``--curriculum`` and ``--drop-easy``; None means that no image is left out."""
        grows, drops = curriculum or "1,1", drop_easy.split(",") if drop_easy else []
        wanted = "a fraction above 0 and at most 1, and an epoch of at least 1, as in 0.75,20"
        refused = f"--curriculum should be IR,AEE: {wanted}, but is {grows}: "
        with as_user_error(refused, msgspec.ValidationError):
            first, whole = msgspec.convert(grows.split(","), _GROWTH, strict=False)
        wanted = "E:R,...: epochs, each with a fraction below 1, as in 40:0.1,60:0.2"
        refused = f"--drop-easy should be {wanted}, but is {drop_easy}: "
        with as_user_error(refused, msgspec.ValidationError):
            pairs = msgspec.convert([each.split(":") for each in drops], _DROPS, strict=False)
        # Drops ascend strictly and start no earlier than `whole`, the first epoch with all images.
        epochs = [whole - 1, *(epoch for epoch, _ in pairs)]
        if epochs != sorted(set(epochs)):
            raise UserError(
                f"the epochs of --drop-easy {drop_easy} should ascend, from {whole} on, the first "
                f"epoch that sees all images (--curriculum {grows})"
            )
        return cls(first, whole, pairs)

    def part(self, epoch: int) -> tuple[float, float]:
        """Return bounds (low, high) of an epoch's part: 0 is the easiest image, 1 the hardest."""
        if dropped := [share for after, share in self.drops if epoch > after]:
            # The latest pair replaces the earlier ones.
            return dropped[-1], 1.0
        return 0.0, min(1.0, self.first + (1 - self.first) * epoch / self.whole)


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(Settings):
    """Settings of training steps and schedules, recorded as the ``recipe`` of a store."""

    epochs: Epochs = 50
    """Epochs of each expert (MTT: train_epochs). Unless --keep says otherwise, the initial
    parameters and those after each epoch are stored."""
    batch_size: PositiveInt = 256
    """Real images per training step (MTT: batch_train)."""
    lr: Positive = 0.01
    """Learning rate of the experts (MTT: lr_teacher)."""
    momentum: Fraction = 0.0
    """mu: momentum of the experts (MTT: mom, 0; AST: 0.9)."""
    weight_decay: NonNegative = 0.0
    """Weight decay of the experts, added to the gradient as torch.optim.SGD does (MTT: l2, 0; AST:
    1e-3)."""
    optimiser: Literal["sgd", "adam"] = "sgd"
    """Optimiser of the experts (AST: optim); Adam takes no --momentum."""
    lr_decay: Positive = 1.0
    """Factor applied to the learning rate after half of the epochs, when the optimiser restarts
    (AST: 0.6). 1: no decay."""
    rho: NonNegative = 0.0
    """rho: size of GSAM's perturbation relative to each parameter (FTD: 0.01). 0: no GSAM. GSAM
    doubles the cost of a step."""
    alpha: NonNegative = 0.0
    """alpha: GSAM subtracts alpha times the component of the gradient that is orthogonal to the
    perturbed gradient (FTD: 0.3 to 1)."""
    loss_scale: Literal["constant", "rising"] = "constant"
    """Factor of the loss: 1, or rising from 0.5 to 1 over ten epochs (AST: clipping loss)."""
    penalty: NonNegative = 0.0
    """lambda: weight of the penalty on the gradient of the logits with respect to the images (AST:
    2). 0: no penalty."""
    penalty_norm: Literal["pixel", "image"] = "pixel"
    """Norm of the gradient in the penalty: over the channels of each pixel (AST's code), or over
    each image."""
    loss: Literal["cross_entropy", "mse"] | None = None
    """Loss of the experts: cross_entropy, or mse, the mean squared error to target vectors (--data
    npz:FILE?targets=NAME). Default: mse if the data set has targets."""
    dsa: str = "color_crop_cutout_flip_scale_rotate"
    """A: augmentations (MTT: dsa_strategy), joined by underscores; none turns them off."""
    curriculum: str | None = None
    """IR,AEE: train the first epoch on the easiest fraction IR of each class. The fraction grows
    linearly and is 1 from epoch AEE on, counted from 0 (PAD: 0.75,20). Needs --scores."""
    drop_easy: str | None = None
    """E:R,...: after epoch E (counted from 0), leave out the easiest fraction R of each class (PAD:
    40:0.1,60:0.2). Needs --scores."""

    def __post_init__(self) -> None:
        """Check the types and the combinations of settings."""
        super().__post_init__()
        # A drop after the last epoch, `epochs - 1`, would have no effect. Without drops `last` is
        # [], which is less than any other list.
        last = [epoch for epoch, _ in Schedule.parse(self.curriculum, self.drop_easy).drops][-1:]
        end = self.epochs - 1
        wanted = (
            f"limited to epochs below {end}, the last epoch of --epochs {self.epochs} "
            "(counted from 0)"
        )
        self.expect("drop_easy", last < [end], wanted)
        if self.alpha and not self.rho:
            raise UserError(
                f"--alpha {self.alpha:g} has no effect, because --rho 0 turns GSAM off; set --rho, "
                "e.g. --rho 0.01"
            )
        if self.optimiser == "adam":
            self.expect("momentum", self.momentum == 0, "0 for --optimiser adam")


@dataclass(frozen=True, kw_only=True)
class ConvNetSettings(Settings):
    """Settings of the ConvNet."""

    width: PositiveInt = 128
    """Channels of the ConvNet."""
    depth: PositiveInt = 3
    """Blocks of the ConvNet (papers: 3 for 32 pixels, 4 for 64, 5 for 128)."""
    norm: Literal["none", "instance", "group", "layer", "batch"] = "instance"
    """Norm of the ConvNet."""
    activation: Literal["relu", "leaky_relu", "sigmoid", "none"] = "relu"
    """Activation of the ConvNet."""
    pooling: Literal["average", "max", "none"] = "average"
    """Pooling of the ConvNet."""


@dataclass(frozen=True, kw_only=True)
class NetworkSettings(ConvNetSettings):
    """Settings of a network and of the images that it sees."""

    network: str = "convnet"
    """Network (MTT: model): convnet, with --width, --depth, --norm, --activation and --pooling, or
    a name with its own options, e.g. alexnet, vgg11:batch, resnet18:group,width=32,
    torchvision:NAME or package.module:function."""
    zca: bool = False
    """Whiten the images (MTT: zca; eps 0.1) instead of normalising each channel."""
    holdout: Fraction = 0.0
    """Fraction of the training images to hold out: they neither train experts nor initialise
    synthetic images."""


@dataclass(frozen=True, kw_only=True)
class ExpertSettings(NetworkSettings, TrainingSettings):
    """Settings that determine the experts, together with data and seed."""

    num_experts: Annotated[int, Meta(ge=1, le=MOST_EXPERTS)] = 100
    """Number of experts to train (MTT: num_experts)."""
    keep: str = "all"
    """Epochs whose parameters are stored, e.g. 0-22 if distillation reads no later epoch. The last
    epoch is always stored. Default: all."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the store. bfloat16 halves its size and has 8 instead of 24 significant
    bits."""

    def __post_init__(self) -> None:
        """Check the settings, and that ``keep`` lists epochs."""
        super().__post_init__()
        kept_epochs(self.keep, self.epochs)


@dataclass(frozen=True, kw_only=True)
class ExpertConfig(RunOptions, ExpertSettings):
    """Train experts on the real images and keep their trajectories (the defaults are MTT's)."""

    recipe: str | None = None
    """Recipe with the defaults of all other settings, e.g. datm/cifar10/ipc10 (`trajmatch recipes`
    lists them), or a .toml file of your own."""
    out: Path
    """Folder of the expert store."""
    data: str | None = None
    """Data set, e.g. cifar10:ROOT or imagefolder:PATH?size=64; without it the shipped
    fashion-mnist-mini."""
    until_epoch: PositiveInt | None = None
    """Train only the first N epochs, e.g. as many as a distillation reads. To continue later, use
    --resume with a larger N or without this flag. Default: all epochs."""
    resume: bool = False
    """Train only the experts that are missing from an existing store."""
    scores: Path | None = None
    """Difficulty of the training images for --curriculum and --drop-easy: a file from `trajmatch
    score`, or a .npy file with one number per image in the order of the data set, higher meaning
    harder."""
    checkpoint_seconds: Annotated[float, Meta(ge=0)] = 60.0
    """Seconds of training between checkpoints of an unfinished expert. Checkpoints take at most a
    twentieth of the time."""
    test_every: Count = 0
    """Epochs between tests of an expert; the last epoch is always tested. 0: the shortest interval
    at which tests use at most a fifth as many images as training."""
    workers: Count = 0
    """Number of experts to train at a time: in several processes on the CPU, in lockstep in one
    process on a GPU. 0: choose automatically. On a GPU, the number
    changes the experts by rounding, and on a CPU not at all."""

    def __post_init__(self) -> None:
        """Check the settings, and that ``until_epoch`` and ``scores`` fit them."""
        super().__post_init__()
        wanted = f"at most --epochs {self.epochs}"
        self.expect("until_epoch", self.trained_epochs <= self.epochs, wanted)
        if bool(self.scores) != bool(self.curriculum or self.drop_easy):
            raise UserError(
                "--curriculum and --drop-easy need the difficulty of the images (--scores), and "
                "--scores needs one of them; `trajmatch score STORE` computes it with experts that "
                "were trained without a curriculum"
            )

    @property
    def trained_epochs(self) -> int:
        """Number of epochs to train: ``until_epoch``, or all of them."""
        return self.epochs if self.until_epoch is None else self.until_epoch


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(Settings):
    """Score every training image by its difficulty for experts: EL2N, higher is harder."""

    store: Path
    """Store of experts, as `trajmatch expert` writes it."""
    out: Path | None = None
    """File of the scores. Default: beside the store, ending in .scores.safetensors, where
    `trajmatch distill` looks for it."""
    epoch: Count | None = None
    """t: epoch of the experts that compute the scores. Default: the stored epoch nearest to a tenth
    of their training, where EL2N separates hard images from easy ones."""
    experts: PositiveInt | None = None
    """Average over the first N experts. Default: all."""
    data: str | None = None
    """Real images, if they are not where the store says."""
    device: str = "auto"
    """Device: cpu, cuda, cuda:N, or auto: a GPU if one can be used, otherwise the CPU."""
    json: bool = False
    """Print the result as JSON."""
    quiet: bool = False
    """Print no progress."""


def kept_epochs(keep: str, epochs: int) -> list[int]:
    """Return the epochs to keep, ascending, for a text such as ``"all"`` or ``"0-22,30"``."""
    if keep == "all":
        return list(range(epochs + 1))
    # Always with the last epoch: it gives the length of the course, and soft labels need it.
    return sorted({epochs, *numbers_of(keep, epochs, "keep", "epochs")})


def numbers_of(text: str, most: int, flag: str, what: str) -> set[int]:
    """Parse a list of numbers and spans such as ``"0-22,30"``.

    Raises UserError if the text is not such a list or has a number above ``most``. The message
    contains ``flag``, and ``what``: the name of the numbers, ``"epochs"`` or ``"experts"``.
    """
    found: set[int] = set()
    for part in map(str.strip, text.split(",")):
        match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part, re.ASCII)
        # Text that does not match becomes the empty span 0 to -1, which is refused below.
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if not first <= last <= most:
            raise UserError(
                f"--{flag} {text} should list {what} from 0 to {most} as numbers and ranges, e.g. "
                f"0-22,30, but contains {part!r}"
            )
        found.update(range(first, last + 1))
    return found


def spans(numbers: Collection[int]) -> str:
    """Format numbers as spans, e.g. ``0-3, 5, 8-10``; the inverse of :func:`numbers_of`."""
    found = []
    # In a run of consecutive numbers, number minus position is constant.
    for _, span in groupby(enumerate(sorted(numbers)), lambda each: each[1] - each[0]):
        first, *others = (number for _, number in span)
        found.append(f"{first}-{others[-1]}" if others else f"{first}")
    return ", ".join(found)
