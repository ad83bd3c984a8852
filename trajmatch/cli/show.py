"""`trajmatch show`: an image grid of a distilled set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trajmatch.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ShowConfig:
    """Draw the images of a distilled set, one row per class."""

    file: Path
    """The distilled set, a file that `trajmatch distill` wrote."""
    out: Path | None = None
    """The picture to write (PNG). Default: beside the file, ending in .png."""
    clip: Literal["sigma", "unit"] = "sigma"
    """sigma shows 2.5 standard deviations around the mean, unit the pixel values 0 to 1."""
    scale: int | None = None
    """Enlargement. Default: so that an image is about 100 pixels wide."""
    per_class: int | None = None
    """Images of each class. Default: all."""

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            UserError: A value is out of its range.
        """
        for name in ("scale", "per_class"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} should be at least 1, but is {value}")
        if self.picture.suffix.lower() != ".png":
            raise UserError(f"--out should end in .png, but is {self.out}")

    @property
    def picture(self) -> Path:
        """Where the picture goes."""
        return self.file.with_suffix(".png") if self.out is None else self.out


def run(argv: list[str]) -> int:
    """Runs the command.

    Args:
        argv: Arguments after the command's name.

    Returns:
        The exit status.
    """
    from trajmatch.cli.arguments import parse

    config = parse(ShowConfig, argv, "trajmatch show", "file")

    from trajmatch import artifact, files, pictures

    distilled = artifact.load(config.file)
    picture = pictures.grid(
        distilled.preprocessing.invert(distilled.images),
        distilled.hard_labels,
        distilled.class_names,
        clip=config.clip,
        scale=config.scale,
        per_class=config.per_class,
    )
    files.check_writable(config.picture.parent)
    files.write_bytes(config.picture, picture)
    print(config.picture)
    return 0
