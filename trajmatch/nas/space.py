"""The architectures of a search: ConvNets by five choices (FTD)."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

from trajmatch.errors import UserError
from trajmatch.nas.config import AXES, NasConfig
from trajmatch.random import derive_seed


class Architecture(NamedTuple):
    """One ConvNet of the space."""

    depth: int
    width: int
    activation: str
    norm: str
    pooling: str

    @property
    def name(self) -> str:
        """What it is called in files and tables, e.g. ``d3-w128-relu-instance-average``."""
        rest = self.activation, self.norm, self.pooling
        return "-".join((f"d{self.depth}", f"w{self.width}", *rest))

    def spec(self, in_channels: int, num_classes: int, image_size: int) -> dict[str, Any]:
        """What :func:`trajmatch.networks.build` takes to make it for some images.

        Args:
            in_channels: Channels of the images.
            num_classes: Number of classes.
            image_size: Side of the images in pixels.

        Raises:
            UserError: The images are too small for it.
        """
        from trajmatch import networks

        options = ",".join(f"{key}={value}" for key, value in self._asdict().items())
        try:
            return networks.specify(f"convnet:{options}", in_channels, num_classes, image_size)
        except ValueError as error:
            raise UserError(
                f"the architecture {self.name} does not fit images of {image_size} pixels: {error}"
            ) from error


def choose(config: NasConfig) -> list[Architecture]:
    """The architectures that a search is over.

    Args:
        config: The choices of each axis, and how many to draw with which seed.

    Returns:
        Them in the order of the space. Those drawn for a number are among those for a larger one,
        and whether one comes before another depends on the seed and on these two alone.
    """
    axes = (getattr(config, axis) for axis in AXES)
    space = [Architecture(*each) for each in itertools.product(*axes)]
    order = sorted(space, key=lambda each: derive_seed(config.seed, "nas", each.name))
    drawn = set(order[: config.size])
    return [each for each in space if each in drawn]
