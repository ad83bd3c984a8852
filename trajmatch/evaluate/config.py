"""Settings of an evaluation and options of its run."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from trajmatch import files
from trajmatch.errors import UserError
from trajmatch.evaluate.sets import SETS
from trajmatch.protocol import PROTOCOLS, Protocol
from trajmatch.run_options import RunOptions
from trajmatch.schema import PositiveInt, Settings


@dataclass(frozen=True, kw_only=True)
class EvalSettings(Settings):
    """Settings that determine the scores, together with the distilled set and the seed."""

    network: tuple[str, ...] = ()
    """Networks to train, e.g. convnet alexnet vgg11:batch resnet18 (MTT: eval_mode, which names a
    list of networks). Default: the network in the file."""
    seeds: PositiveInt = 5
    """Number of networks of each architecture to train on each set (MTT: num_eval)."""
    protocol: Literal["mtt", "datm", "ast", "rat"] = "mtt"
    """How each network is trained and tested: as in the code of MTT, DATM or AST, or with Adam
    (rat), for sets whose students were trained with Adam. The score is always the last test; for
    AST the maximum over its tests is reported too."""
    epochs: PositiveInt | None = None
    """Epochs of each network (MTT: epoch_eval_train). As in MTT's code, one more epoch is run.
    Default: 1000 in every protocol."""
    equal_steps: PositiveInt | None = None
    """Train every network for this number of SGD steps, whatever the number of images. Replaces
    --epochs."""
    batch_size: PositiveInt | None = None
    """Images per SGD step (MTT: batch_train). Default: the protocol's."""
    random_baseline: bool = True
    """Also train networks on as many random real images as distilled ones."""
    distilled_hard: bool = True
    """If the file has soft labels, also train networks on its images with hard labels: the class of
    each image's largest logit."""
    experts: Path | None = None
    """Expert store for soft labels. Also train networks on random and on k-center real images with
    soft labels. A soft label is the mean of the logits, after the last epoch, of the experts that
    classify the image correctly. If the file has hard labels, also train networks on k-center
    images with hard labels."""
    k_center: bool = False
    """Also train networks on as many real images as distilled ones, chosen by greedy k-center: in
    each class the image nearest to the mean, then repeatedly the image farthest from all chosen
    ones."""
    herding: bool = False
    """Also train networks on as many real images as distilled ones, chosen by herding: in each
    class, repeatedly the image that brings the mean of the chosen ones nearest to the class mean.
    With --experts, also train networks on these images with soft labels."""
    k_center_store: Path | None = None
    """Expert store in whose logits --k-center and --herding measure distances (first expert, last
    epoch). Default: the store of --experts; without one, distances are between preprocessed
    pixels."""
    whole_real: bool = False
    """Also train networks on the whole real training set."""
    robust: bool = False
    """Compute DD-Ranking's label-robust and augmentation-robust scores. They need networks trained
    on the whole real training set, and on distilled and random images without augmentation."""
    whole_real_accuracy: Annotated[float, Meta(ge=0, le=100)] | None = None
    """Known test accuracy in percent after training on the whole real training set, for --robust.
    Default: train networks to measure it."""

    def __post_init__(self) -> None:
        """Check the types and the combinations of settings."""
        super().__post_init__()
        if self.equal_steps is not None and self.epochs is not None:
            raise UserError(
                f"--equal-steps {self.equal_steps} and --epochs {self.epochs} both say how long to "
                "train; leave one of them out"
            )
        chosen = self.k_center or self.herding or self.experts is not None
        if self.k_center_store is not None and not chosen:
            raise UserError(
                "--k-center-store is for --k-center and --herding; add --k-center or --herding"
            )
        if self.whole_real_accuracy is not None and not self.robust:
            raise UserError("--whole-real-accuracy only affects --robust; add --robust")

    def training_protocol(self, lr: float, dsa: str) -> Protocol:
        """Return the protocol with the settings applied, for a step size and an augmentation."""
        paper, steps = PROTOCOLS[self.protocol], self.equal_steps
        epochs, batch_size = self.epochs or paper.epochs, self.batch_size or paper.batch_size
        return replace(paper, epochs=epochs, batch_size=batch_size, steps=steps, lr=lr, dsa=dsa)

    def training_sets(self, soft: bool) -> list[str]:
        """Return the names of the sets to train on, in training order.

        ``soft`` is True if the distilled set has soft labels. Raises UserError if the settings need
        experts but name none.
        """
        experts, robust = self.experts is not None, self.robust
        if robust and soft and not experts:
            raise UserError(
                "--robust compares a set with soft labels to random images with soft labels; name "
                "an expert store for the soft labels with --experts"
            )
        # The robust scores need several sets, with labels of the distilled set's kind.
        asked = {
            "distilled": True,
            "distilled_hard": soft and (self.distilled_hard or robust),
            "random_real": self.random_baseline or (robust and not soft),
            "random_real_soft": experts and (self.random_baseline or (robust and soft)),
            "k_center": self.k_center or (experts and not soft),
            "k_center_soft": experts,
            "herding": self.herding,
            "herding_soft": self.herding and experts,
            "whole_real": self.whole_real or (robust and self.whole_real_accuracy is None),
            "distilled_plain": robust,
            "random_real_plain": robust,
        }
        return [name for name in SETS if asked[name]]

    def total_rounds(self, soft: bool) -> int:
        """Return the total number of epochs over all networks, for the progress display.

        If ``equal_steps`` is set, return the number of steps instead.
        """
        networks = max(1, len(self.network)) * self.seeds * len(self.training_sets(soft))
        return networks * self.training_protocol(lr=1.0, dsa="none").num_rounds


@dataclass(frozen=True, kw_only=True)
class EvalConfig(RunOptions, EvalSettings):
    """Train fresh networks on a distilled set and test them on the real test images."""

    file: Path
    """The distilled set: a file that `trajmatch distill` wrote, or zoo:NAME (trajmatch zoo)."""
    out: Path | None = None
    """Folder for result.json and a record of each network; --resume continues from the records.
    Default: no folder; with --resume or --max-time, a folder beside the file, with the ending
    .eval."""
    data: str | None = None
    """Data set with the test images. Default: found by the name in the file."""
    resume: bool = False
    """Continue a stopped evaluation. It may have more seeds, networks and training sets than
    before."""
    json: bool = False
    """Print JSON, and nothing else, on the standard output."""

    @property
    def records(self) -> Path | None:
        """Folder for a record of each network; None if no records are kept."""
        if self.out is not None or not (self.resume or self.max_time):
            return self.out
        return files.beside(f"{self.file}".removeprefix(files.ZOO), ".eval")
