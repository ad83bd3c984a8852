"""What a search over architectures is: the fields are the flags of ``trajmatch nas``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from trajmatch.errors import UserError
from trajmatch.evaluate.protocol import Protocol, named
from trajmatch.fields import settle
from trajmatch.interruption import seconds

#: FTD's search space: 4 x 4 x 3 x 5 x 3 = 720 ConvNets.
AXES: dict[str, tuple[int, ...] | tuple[str, ...]] = {
    "depths": (1, 2, 3, 4),
    "widths": (32, 64, 128, 256),
    "activations": ("sigmoid", "relu", "leaky_relu"),
    "norms": ("none", "batch", "layer", "instance", "group"),
    "poolings": ("none", "max", "average"),
}


@dataclass(frozen=True, kw_only=True)
class NasConfig:
    """Rank ConvNets by training them on a small set, beside their ranking on the real data (FTD).

    Raises:
        UserError: A value is out of its range.
    """

    file: Path
    """The distilled set, a file that `trajmatch distill` wrote."""
    out: Path
    """Folder of the search: a record for each architecture, and result.json."""
    data: str | None = None
    """Data set that was distilled; by default found by the name that is in the file."""
    proxy: Literal["distilled", "random-real", "k-center"] = "distilled"
    """What architectures are trained on in place of the real data: the distilled images, or as many
    real ones, drawn or chosen as by `trajmatch eval --k-center`."""
    k_center_store: Path | None = None
    """Store of experts for --proxy k-center, as for `trajmatch eval`."""
    depths: tuple[int, ...] = (1, 2, 3, 4)
    """Blocks of the networks."""
    widths: tuple[int, ...] = (32, 64, 128, 256)
    """Channels of every block."""
    activations: tuple[str, ...] = ("sigmoid", "relu", "leaky_relu")
    """Activations."""
    norms: tuple[str, ...] = ("none", "batch", "layer", "instance", "group")
    """Norms."""
    poolings: tuple[str, ...] = ("none", "max", "average")
    """Poolings; the space is every combination of these five, 720 networks if all are as here."""
    count: int | None = None
    """Draw so many of these architectures by --seed; a larger number adds to a smaller one's."""
    protocol: Literal["mtt", "datm", "ast"] = "mtt"
    """How networks are trained, as for `trajmatch eval`."""
    epochs: int = 200
    """Epochs on the proxy (FTD: 200; the loop runs one more)."""
    real_epochs: int = 200
    """Epochs on the real training set (FTD: 200)."""
    real_lr: float | None = None
    """eta on the real training set. Default: that of the file."""
    real_scores: Path | None = None
    """JSON file with the accuracies on the real data, in place of training there: the result.json
    of an earlier search, or any {"real": {"d3-w128-relu-instance-average": 81.5, ...}}."""
    top: tuple[int, ...] = (5, 10, 20)
    """Also correlate the ranks among the best so many architectures."""
    top_by: Literal["real", "proxy"] = "real"
    """Whose ranking says which are the best; FTD does not say which it took."""
    seeds: int = 1
    """Networks trained of each architecture, whose mean accuracy ranks it."""
    seed: int = 0
    """Seed of --count, initialisations, batch order, augmentation and random real images."""
    resume: bool = False
    """Go on with an interrupted search; --count and the choices above may grow."""
    max_time: str | None = None
    """Stop after so long, e.g. 90m or 1h30m (exit status 75); --resume goes on with the network
    that was in training."""
    json: bool = False
    """Print JSON, and nothing else, on the standard output."""
    device: str = "auto"
    """Device: cpu, cuda, cuda:N, or auto, which is a GPU where one can be used, else the CPU."""
    quiet: bool = False
    """Print no progress."""

    def __post_init__(self) -> None:
        """Check types and ranges; see the class."""
        settle(self)
        for axis, space in AXES.items():
            values = getattr(self, axis)
            self._check_values(axis, values, f"of {', '.join(map(str, space))}", set(space))
        self._check_values("top", self.top, "whole numbers above 1", None)
        for field in ("epochs", "real_epochs", "seeds", "count"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise UserError(f"{_flag(field)} should be at least 1, but is {value}")
        if self.size < 2:
            raise UserError(
                f"a ranking needs at least 2 architectures, but {self.size} is asked for; give "
                "more values, or a larger --count"
            )
        if self.real_lr is not None and not (math.isfinite(self.real_lr) and self.real_lr > 0):
            raise UserError(f"--real-lr should be a number above 0, but is {self.real_lr}")
        if self.max_time is not None:
            seconds(self.max_time)
        if self.k_center_store is not None and self.proxy != "k-center":
            raise UserError("--k-center-store is for --proxy k-center alone; leave one of them out")

    @property
    def size(self) -> int:
        """How many architectures are searched."""
        combinations = math.prod(len(getattr(self, axis)) for axis in AXES)
        return combinations if self.count is None else min(self.count, combinations)

    def proxy_protocol(self, lr: float, dsa: str) -> Protocol:
        """How networks are trained on the proxy, with step size and augmentation of the file."""
        return replace(named(self.protocol), lr=lr, dsa=dsa, epochs=self.epochs)

    def real_protocol(self, lr: float, dsa: str) -> Protocol:
        """How they are trained on the real data, likewise, unless ``real_lr`` says otherwise."""
        chosen: dict[str, Any] = {"lr": self.real_lr or lr, "epochs": self.real_epochs}
        return replace(named(self.protocol), dsa=dsa, **chosen)

    def _check_values(
        self, field: str, values: Sequence[object], wanted: str, allowed: set[Any] | None
    ) -> None:
        def fits(value: Any) -> bool:
            return value in allowed if allowed is not None else value > 1

        if len(values) == 0 or len({*values}) < len(values) or not all(map(fits, values)):
            given = ", ".join(map(str, values)) or "nothing"
            raise UserError(
                f"{_flag(field)} should be one or more {wanted}, each once, but is {given}"
            )


def _flag(field: str) -> str:
    return "--" + field.replace("_", "-")
