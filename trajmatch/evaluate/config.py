"""What an evaluation is: the fields are the flags of ``trajmatch eval``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trajmatch.errors import UserError


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Train fresh networks on a distilled set and test them on the real test images.

    Raises:
        UserError: A value is out of its range.
    """

    file: Path
    """The distilled set, a file that `trajmatch distill` wrote."""
    data: str | None = None
    """Data set with the test images; by default found by the name that is in the file."""
    seeds: int = 5
    """Networks to train (MTT: num_eval)."""
    epochs: int = 1000
    """Epochs of each network (MTT: epoch_eval_train; the loop runs one more)."""
    batch_size: int = 256
    """Images per SGD step (MTT: batch_train)."""
    random_baseline: bool = True
    """Train as many networks on random real images of the same number."""
    json: bool = False
    """Print JSON, and nothing else, on the standard output."""
    seed: int = 0
    """Seed of initialisations, batch order, augmentation and the random real images."""
    device: str = "cpu"
    """Where to train: cpu, cuda or cuda:N."""
    quiet: bool = False
    """Print no progress."""

    def __post_init__(self) -> None:
        """Checks the ranges; see the class."""
        for field in ("seeds", "epochs", "batch_size"):
            value = getattr(self, field)
            if value < 1:
                flag = "--" + field.replace("_", "-")
                raise UserError(f"{flag} should be at least 1, but is {value}")
