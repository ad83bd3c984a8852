"""Settings of conversions, exports, pushes and pulls: the flags of the commands."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trajmatch.errors import UserError
from trajmatch.schema import Finite, Positive, PositiveInt, Settings


@dataclass(frozen=True, kw_only=True)
class ConvertConfig(Settings):
    """Convert files of the papers' scripts into a store or a distilled set, or back.

    SOURCE decides the direction: trajectories (replay_buffer_*.pt) become a store of experts, and a
    store becomes trajectories; images, labels and step size (images_*.pt, labels_*.pt, lr_*.pt)
    become a distilled set, and a distilled set becomes these three. float32 numbers are kept
    exactly.
    """

    source: Path
    """One of: replay_buffer_*.pt or a folder with such files; images_*.pt (its labels beside it) or
    the folder with these files; the folder of a store of experts; a distilled set."""
    out: Path
    """Output: a new folder, or the file of a distilled set."""
    data: str | None = None
    """Data set that the .pt files were made from, e.g. cifar10:ROOT."""
    recipe: str | None = None
    """Recipe with which the .pt files were made, e.g. mtt/cifar10/ipc10. Replaces --network, --dsa
    and --preprocessing."""
    network: str | None = None
    """Network of the .pt files: convnet, convnet:width=32,depth=4, vgg11, ..."""
    preprocessing: Literal["zca", "mtt", "data"] | None = None
    """Preprocessing of the network's images: whitening (zca), normalisation by the constants of
    MTT's code for this data set (mtt), or normalisation by mean and standard deviation of the
    training images (data)."""
    mean: tuple[Finite, ...] | None = None
    """Mean of each channel, pixels from 0 to 1; give --mean and --std instead of
    --preprocessing."""
    std: tuple[Positive, ...] | None = None
    """Standard deviation of each channel."""
    dsa: str | None = None
    """DSA groups with which the .pt files were made, e.g. color_crop_cutout_flip_scale_rotate, or
    none."""
    lr: Positive | None = None
    """Learned step size (syn_lr); needed if there is no lr_*.pt (MTT's script writes none)."""
    labels: Literal["logit", "probability", "target"] | None = None
    """Kind of floating-point labels: target logits (as in DATM), probabilities, or the target
    vectors of a regression."""
    keep: str | None = None
    """Epochs of the trajectories to keep, e.g. 0-22; the last epoch is always kept. Default:
    all."""
    per_file: PositiveInt = 10
    """Number of experts per replay_buffer_*.pt written (papers: 10)."""
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
    """The distilled set: a file that `trajmatch distill` wrote, or zoo:NAME."""
    to: Literal["imagefolder", "npz", "torch", "huggingface"]
    """imagefolder: PNG files in a folder for each class, and distilled.json; npz: NumPy arrays;
    torch: tensors for a TensorDataset, read by torch.load(FILE, weights_only=True); huggingface: a
    folder that datasets.load_dataset reads. npz and torch hold the images as trained (normalised or
    whitened); the other two hold 8-bit pixels."""
    out: Path
    """Output: a new folder, or a file for npz and torch."""
    data: str | None = None
    """Data set of a whitened set of the zoo, for its first use."""

    def __post_init__(self) -> None:
        """Check the types and the suffix of the file."""
        super().__post_init__()
        ending = {"npz": ".npz", "torch": ".pt"}.get(self.to, self.out.suffix)
        self.expect("out", self.out.suffix == ending, f"named *{ending} for --to {self.to}")


@dataclass(frozen=True, kw_only=True)
class PushConfig(Settings):
    """Upload a distilled set or an expert store to the Hugging Face hub."""

    source: Path
    """A distilled set, or the folder of an expert store."""
    to: str
    """Destination: hf:USER/REPOSITORY/NAME, in a repository for data sets, which is made if it does
    not exist. Without /NAME, the name of the source is used."""
    private: bool = False
    """Make a new repository private; refuse a repository that is public."""
    quiet: bool = False
    """Print no progress."""


@dataclass(frozen=True, kw_only=True)
class PullConfig(Settings):
    """Download a distilled set or an expert store from the Hugging Face hub, and check it."""

    source: str
    """hf:USER/REPOSITORY/NAME. Omit /NAME if the repository holds only one set or store."""
    out: Path | None = None
    """The new file or folder. Default: NAME in the current folder."""
    revision: str = "main"
    """Branch, tag or commit of the repository."""
    quiet: bool = False
    """Print no progress."""
