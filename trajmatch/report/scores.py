"""Accuracies from `trajmatch run` and `trajmatch eval --json`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from trajmatch import files
from trajmatch.evaluate.sets import IN_TABLES, SETS
from trajmatch.report.history import Number
from trajmatch.schema import Count, PositiveInt, convert


class Accuracy(msgspec.Struct):
    """Test accuracy (percent) over several networks, where diverged networks count as 0.

    For target vectors, this is the mean squared error, and ``errors`` has one per network.
    """

    mean: Number
    std: Number
    seeds: Count = 1
    diverged: Count | None = None
    errors: tuple[Number, ...] = ()

    def __str__(self) -> str:
        """Format as ``72.7 ± 1.4``."""
        if self.errors:
            return f"{self.mean:.4g} ± {self.std:.4g}"
        return f"{self.mean:.1f} ± {self.std:.1f}"


class Protocol(msgspec.Struct):
    """Protocol by which the networks were trained."""

    name: str = ""
    steps: Count | None = None
    num_epochs: Count | None = None

    def __str__(self) -> str:
        """Format as ``mtt, 1000 epochs``."""
        numbers = {"steps": self.steps, "epochs": self.num_epochs}
        lengths = [f"{number} {unit}" for unit, number in numbers.items() if number is not None]
        return ", ".join(filter(None, [self.name, *lengths[:1]]))


#: Struct with an optional accuracy for each training set.
_BySet = msgspec.defstruct("_BySet", [(name, Accuracy | None, None) for name in SETS])


class Scores(_BySet):  # type: ignore[misc, valid-type]
    """Accuracies of one architecture by training set; at least one must be present."""

    network: str = ""
    protocol: Protocol = msgspec.field(default_factory=Protocol)
    robust: dict[str, Accuracy] | None = None

    def __post_init__(self) -> None:
        """Refuse an object without accuracies."""
        if not self.found:
            raise ValueError("it has no accuracies")

    @property
    def found(self) -> dict[str, Accuracy]:
        """Available accuracies, in table order."""
        all_ = ((name, getattr(self, name)) for name in IN_TABLES)
        return {name: accuracy for name, accuracy in all_ if accuracy is not None}

    @property
    def diverged(self) -> int:
        """Number of networks known to have diverged."""
        return sum(each.diverged or 0 for each in self.found.values())


class Sizes(msgspec.Struct):
    """Numbers of real images."""

    training_images: PositiveInt | None = None
    test_images: PositiveInt | None = None


class Stored(msgspec.Struct):
    """Size of a training set, for tables."""

    labels: str
    images: PositiveInt
    stored_values: Count
    stored_bytes: PositiveInt


class Experts(msgspec.Struct):
    """Test accuracy of each expert in percent, after ``epoch`` of the planned ``epochs``."""

    accuracies: tuple[Number, ...] = ()
    epoch: PositiveInt | None = None
    epochs: PositiveInt | None = None


class Results(msgspec.Struct):
    """Content of a file of scores: each architecture's scores, and more numbers for the report."""

    networks: Annotated[list[Scores], Meta(min_length=1)]
    dataset: Sizes = msgspec.field(default_factory=Sizes)
    sets: dict[str, Stored] = {}
    stage_seconds: dict[str, Number] = {}
    experts: Experts = msgspec.field(default_factory=Experts)
    command: str = ""


def read(path: Path, network: str | None = None) -> Results:
    """Read a ``summary.json`` of `trajmatch run`, or the output of `trajmatch eval --json`.

    ``network`` names the architecture of a summary; None for the output of `trajmatch eval`.
    """
    content = files.read_json(path)
    # A summary has one architecture, with scores and sizes at the top level of the file.
    if network is not None:
        content |= {"networks": [{**content, "network": network}], "dataset": content.copy()}
    writers = "`trajmatch run` or `trajmatch eval --json`"
    return convert(content, Results, f"{path} is not what {writers} writes")


def gathered(found: Sequence[Results]) -> Results:
    """Join results: networks and sizes from all of them, everything else from the first."""
    return msgspec.structs.replace(
        found[0] if found else Results([]),
        networks=[network for each in found for network in each.networks],
        # In reverse, so that the first file wins.
        sets={name: size for each in found[::-1] for name, size in each.sets.items()},
        dataset=next((each.dataset for each in found if each.dataset.test_images), Sizes()),
    )
