"""Settings of a conversion and of an export: the flags of the two commands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trajmatch.errors import UserError
from trajmatch.schema import Finite, Positive, PositiveInt, Settings


@dataclass(frozen=True, kw_only=True)
class ConvertConfig(Settings):
    """Convert files of the papers' scripts into a store or a distilled set, or back.

    SOURCE decides the direction: trajectories (replay_buffer_*.pt) become a store of experts, a
    store becomes trajectories; images, labels and step size (images_*.pt, labels_*.pt, lr_*.pt)
    become a distilled set, a distilled set becomes these three. Numbers are kept to the bit.
    """

    source: Path
    """replay_buffer_*.pt or a folder of them; images_*.pt, with its labels beside it, or a folder
    of both; the folder of a store of experts; or a distilled set."""
    out: Path
    """Output: a new folder, or the file of a distilled set."""
    data: str | None = None
    """Data set that the .pt files were made from, e.g. cifar10:ROOT."""
    recipe: str | None = None
    """Recipe that the .pt files were made by, e.g. mtt/cifar10/ipc10: in place of --network, --dsa
    and --preprocessing."""
    network: str | None = None
    """Network of the .pt files: convnet, convnet:width=32,depth=4, vgg11, ..."""
    preprocessing: Literal["zca", "mtt", "data"] | None = None
    """Preprocessing of the network's images: whitening (zca), normalisation by the constants of
    MTT's code for this data set (mtt), or by mean and deviation of the training images (data)."""
    mean: tuple[Finite, ...] | None = None
    """Mean of each channel, pixels from 0 to 1; with --std in place of --preprocessing."""
    std: tuple[Positive, ...] | None = None
    """Standard deviation of each channel."""
    dsa: str | None = None
    """Groups of the augmentation A (DSA) that they were made with, e.g.
    color_crop_cutout_flip_scale_rotate, or none."""
    lr: Positive | None = None
    """eta: learned step size (syn_lr), for images without a file lr_*.pt: MTT's script writes
    none."""
    labels: Literal["logit", "probability"] | None = None
    """Kind of floating-point labels: target logits (as DATM's) or probabilities."""
    keep: str | None = None
    """Epochs to keep of trajectories, e.g. 0-22; the last one is kept always. Default: all."""
    per_file: PositiveInt = 10
    """Experts in each replay_buffer_*.pt that is written; the papers' scripts put 10 into one."""
    quiet: bool = False
    """Print no progress."""

    def __post_init__(self) -> None:
        """Check types and ranges, and the flags that need or exclude each other."""
        super().__post_init__()
        if (self.mean is None) != (self.std is None):
            raise UserError("--mean and --std belong together; give both, or --preprocessing")
        if self.mean is not None and self.preprocessing is not None:
            raise UserError("--mean and --std take the place of --preprocessing; leave it out")


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Settings):
    """Write a distilled set in a form that other programs read."""

    file: Path
    """The distilled set, a file that `trajmatch distill` wrote."""
    to: Literal["imagefolder", "npz", "torch", "huggingface"]
    """imagefolder: PNG files in a folder for each class, and distilled.json; npz: arrays of NumPy;
    torch: tensors for a TensorDataset, read by torch.load(FILE, weights_only=True); huggingface: a
    folder that datasets.load_dataset reads. Images of npz and torch are as they were trained, the
    other two hold pixels."""
    out: Path
    """Output: a new folder, or a file for npz and torch."""

    def __post_init__(self) -> None:
        """Check the types and the suffix of the file."""
        super().__post_init__()
        wanted = {"npz": ".npz", "torch": ".pt"}.get(self.to)
        if wanted is not None and self.out.suffix != wanted:
            raise UserError(f"--out should end in {wanted} for --to {self.to}, but is {self.out}")
