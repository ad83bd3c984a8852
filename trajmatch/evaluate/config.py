"""Settings of an evaluation and options of its run."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from trajmatch import files
from trajmatch.errors import UserError
from trajmatch.protocol import PROTOCOLS, Protocol
from trajmatch.run_options import RunOptions
from trajmatch.schema import PositiveInt, Settings

#: What networks can be trained on, by their names in the result.
SETS = ("distilled", "random_real", "k_center", "whole_real")


@dataclass(frozen=True, kw_only=True)
class EvalSettings(Settings):
    """Settings that decide the scores, beside the distilled set and the seed."""

    network: tuple[str, ...] = ()
    """Networks to train, e.g. convnet alexnet vgg11:batch resnet18 (MTT: eval_mode names a list of
    them); by default that of the file."""
    seeds: PositiveInt = 5
    """Networks to train (MTT: num_eval)."""
    protocol: Literal["mtt", "datm", "ast"] = "mtt"
    """Training and test of each network: as in the code of MTT, DATM or AST. The score is the
    last test in all of them; the maximum over the tests of AST is reported beside it."""
    epochs: PositiveInt | None = None
    """Epochs of each network (MTT: epoch_eval_train; the loop runs one more). Default: the
    protocol's, 1000 in all of them."""
    equal_steps: PositiveInt | None = None
    """Train every network for this number of SGD steps, whatever the number of images, instead of
    --epochs."""
    batch_size: PositiveInt | None = None
    """Images per SGD step (MTT: batch_train). Default: the protocol's."""
    random_baseline: bool = True
    """Train as many networks on random real images of the same number."""
    k_center: bool = False
    """Train as many on real images of the same number that greedy k-center chooses: in each class
    the image nearest to the mean, then always the one farthest from all taken."""
    k_center_store: Path | None = None
    """Store of experts: --k-center measures distances in the logits of its first expert after the
    last epoch. Default: in the preprocessed pixels."""
    whole_real: bool = False
    """Train as many on the whole real training set."""

    def __post_init__(self) -> None:
        """Check the types, and that the settings do not contradict each other."""
        super().__post_init__()
        if self.equal_steps is not None and self.epochs is not None:
            raise UserError(
                f"--equal-steps {self.equal_steps} and --epochs {self.epochs} both say how long to "
                "train; leave one of them out"
            )
        if self.k_center_store is not None and not self.k_center:
            raise UserError("--k-center-store is for --k-center alone; add --k-center")

    def training_protocol(self, lr: float, dsa: str) -> Protocol:
        """Return the protocol with all that was asked for.

        Args:
            lr: Step size.
            dsa: Augmentation.

        Returns:
            How each network is trained and tested.
        """
        paper, steps = PROTOCOLS[self.protocol], self.equal_steps
        epochs, batch_size = self.epochs or paper.epochs, self.batch_size or paper.batch_size
        own = replace(paper, epochs=epochs, batch_size=batch_size, steps=steps)
        return replace(own, lr=lr, dsa=dsa)

    @property
    def training_sets(self) -> tuple[str, ...]:
        """Names of the sets to train on, as the result has them."""
        asked = (True, self.random_baseline, self.k_center, self.whole_real)
        return tuple(itertools.compress(SETS, asked))

    @property
    def total_rounds(self) -> int:
        """Epochs (or, with equal steps, steps) of all networks, for a display of progress."""
        networks = max(1, len(self.network)) * self.seeds * len(self.training_sets)
        return networks * self.training_protocol(lr=1.0, dsa="none").num_rounds


@dataclass(frozen=True, kw_only=True)
class EvalConfig(RunOptions, EvalSettings):
    """Train fresh networks on a distilled set and test them on the real test images."""

    file: Path
    """The distilled set, a file that `trajmatch distill` wrote."""
    out: Path | None = None
    """Folder for a record of each network and result.json, from which --resume goes on. Default:
    none, or with --resume or --max-time a folder beside the file that ends in .eval."""
    data: str | None = None
    """Data set with the test images; by default found by the name that is in the file."""
    resume: bool = False
    """Go on with a stopped evaluation; --seeds, --network and the sets may grow."""
    json: bool = False
    """Print JSON, and nothing else, on the standard output."""

    @property
    def records(self) -> Path | None:
        """Folder for a record of each network; None where none is kept."""
        if self.out is not None or not (self.resume or self.max_time):
            return self.out
        return files.beside(self.file, ".eval")
