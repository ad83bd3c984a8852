"""Published accuracies of random real images, which recipes do not have."""

from __future__ import annotations

from dataclasses import dataclass

from trajmatch.distill import DistillConfig
from trajmatch.experts.config import NetworkSettings
from trajmatch.recipes import Recipe


@dataclass(frozen=True)
class Published:
    """An accuracy that a paper reports.

    Attributes:
        mean: Mean over networks, in percent.
        std: Standard deviation over networks; None where it is not published.
        source: Where it stands.
    """

    mean: float
    std: float | None
    source: str

    def __str__(self) -> str:
        deviation = "" if self.std is None else f" +- {self.std:.1f}"
        return f"{self.mean:.1f}{deviation} % ({self.source})"


SOURCE = "DATM, main table, row random"

#: Mean and standard deviation in percent, by data set and images per class.
RANDOM_REAL = {
    "cifar10": {
        1: (15.4, 0.3),
        10: (31.0, 0.5),
        50: (50.6, 0.3),
        500: (73.2, 0.3),
        1000: (78.4, 0.2),
    },
    "cifar100": {1: (4.2, 0.3), 10: (14.6, 0.5), 50: (33.4, 0.4), 100: (42.8, 0.3)},
    "tiny-imagenet": {1: (1.4, 0.1), 10: (5.0, 0.2), 50: (15.0, 0.4)},
}

#: Blocks of the ConvNet in that table; all else of it is the default of ``trajmatch expert``.
DEPTHS = {"cifar10": 3, "cifar100": 3, "tiny-imagenet": 4}

_NETWORK = ("network", "width", "depth", "norm", "activation", "pooling")


def distilled_baseline(recipe: Recipe) -> Published | None:
    """Return the accuracy that the recipe's distilled images are published with."""
    if recipe.accuracy is None:
        return None
    return Published(recipe.accuracy, recipe.std, recipe.accuracy_source)


def random_baseline(recipe: Recipe) -> Published | None:
    """Return the accuracy of as many random real images with the recipe's network, if known."""
    ipc = recipe.distill.get("ipc", DistillConfig.ipc)
    name = recipe.data.partition("?")[0]
    found = RANDOM_REAL.get(name, {}).get(ipc)
    if found is None:
        return None
    settings = {**recipe.expert, **recipe.distill}  # the latter of runs without experts
    network = NetworkSettings(**{k: settings[k] for k in _NETWORK if k in settings})
    if network != NetworkSettings(depth=DEPTHS[name]):
        return None
    return Published(*found, SOURCE)
