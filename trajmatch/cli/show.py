"""`trajmatch show`: the images of a distilled set as a picture, or as an animation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from trajmatch import files
from trajmatch.errors import UserError

if TYPE_CHECKING:
    from trajmatch.artifact import Artifact
    from trajmatch.snapshots import Snapshots


@dataclass(frozen=True, kw_only=True)
class ShowConfig:
    """Draw the images of a distilled set, one row per class, or how they came about."""

    file: Path
    """The distilled set, a file that `trajmatch distill` wrote."""
    out: Path | None = None
    """The picture to write: a PNG; or, ending in .gif, an animation over the iterations. Default:
    beside the file, ending in .png."""
    strip: bool = False
    """Draw the iterations side by side in one PNG, a column for each."""
    snapshots: Path | None = None
    """The images over the iterations. Default: what `trajmatch distill` put beside the file."""
    frame_seconds: float = 0.5
    """How long an image of the animation stays; the last stays four times as long."""
    clip: Literal["sigma", "unit"] = "sigma"
    """sigma shows 2.5 standard deviations around the mean, unit the pixel values 0 to 1."""
    scale: int | None = None
    """Enlargement. Default: so that an image is about 100 pixels wide."""
    per_class: int | None = None
    """Images of each class. Default: all; with --strip, one."""

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            UserError: A value is out of its range.
        """
        for name in ("scale", "per_class"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} should be at least 1, but is {value}")
        if not (math.isfinite(self.frame_seconds) and self.frame_seconds >= 0.02):
            raise UserError(
                f"--frame-seconds should be at least 0.02, but is {self.frame_seconds}; no viewer "
                "shows a GIF faster"
            )
        endings = (".png",) if self.strip else (".png", ".gif")
        if self.picture.suffix.lower() not in endings:
            raise UserError(f"--out should end in {' or '.join(endings)}, but is {self.out}")

    @property
    def picture(self) -> Path:
        """Where the picture goes."""
        return self.file.with_suffix(".png") if self.out is None else self.out

    @property
    def animated(self) -> bool:
        """Whether it is an animation."""
        return self.picture.suffix.lower() == ".gif"


def run(argv: list[str]) -> int:
    """Runs the command.

    Args:
        argv: Arguments after the command's name.

    Returns:
        The exit status.
    """
    from trajmatch.cli.arguments import parse

    config = parse(ShowConfig, argv, "trajmatch show", "file")

    from trajmatch import artifact

    distilled = artifact.load(config.file)
    picture = _draw(config, distilled)
    files.check_writable(config.picture.parent)
    files.write_bytes(config.picture, picture)
    print(config.picture)
    return 0


def _draw(config: ShowConfig, distilled: Artifact) -> bytes:
    from trajmatch import pictures, timelapse

    names = distilled.class_names
    if config.animated:
        return timelapse.animation(
            _snapshots(config, distilled),
            names,
            clip=config.clip,
            scale=config.scale,
            per_class=config.per_class,
            frame_seconds=config.frame_seconds,
        )
    if config.strip:
        return timelapse.strip(
            _snapshots(config, distilled),
            names,
            clip=config.clip,
            scale=config.scale,
            per_class=config.per_class,
        )
    return pictures.grid(
        distilled.preprocessing.invert(distilled.images),
        distilled.hard_labels,
        names,
        clip=config.clip,
        scale=config.scale,
        per_class=config.per_class,
    )


def _snapshots(config: ShowConfig, distilled: Artifact) -> Snapshots:
    from trajmatch import snapshots

    path = config.snapshots
    if path is None:
        path = files.beside(config.file, ".snapshots.safetensors")
        if not path.exists():
            raise UserError(
                f"{config.file} has no images of its iterations beside it ({path.name}); say where "
                "they are with --snapshots, or distil without --snapshots 0"
            )
    return snapshots.of_artifact(path, distilled)
