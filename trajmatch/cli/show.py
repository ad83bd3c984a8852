"""`trajmatch show`: draws the images of a distilled set as a picture or an animation."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from trajmatch import files
from trajmatch.errors import UserError
from trajmatch.schema import PositiveInt, Settings

if TYPE_CHECKING:
    from trajmatch.artifact import Artifact


@dataclass(frozen=True, kw_only=True)
class ShowConfig(Settings):
    """Draw a distilled set, one row per class, or its development over the iterations."""

    file: Path
    """The distilled set: a file that `trajmatch distill` wrote, or zoo:NAME."""
    out: Path | None = None
    """Picture to write. A name ending in .png gives a picture, .gif an animation over the
    iterations. Default: the name of the file, ending in .png."""
    strip: bool = False
    """Draw the iterations side by side in one PNG, a column for each."""
    snapshots: Path | None = None
    """File of images at several iterations. Default: the one that `trajmatch distill` put beside
    the set."""
    frame_seconds: Annotated[float, Meta(ge=0.02, le=655)] = 0.5
    """Seconds per frame; the last frame stays four times as long. At least 0.02, the limit of GIF
    viewers."""
    clip: Literal["sigma", "unit"] = "sigma"
    """Range of pixel values to show. sigma: 2.5 standard deviations around the mean. unit: 0 to
    1."""
    scale: PositiveInt | None = None
    """Factor by which images are enlarged. Default: chosen so that an image is about 100 pixels
    wide."""
    per_class: PositiveInt | None = None
    """Number of images to draw of each class. Default: all; with --strip, one."""
    data: str | None = None
    """Data set of a whitened set of the zoo, for its first use."""

    def __post_init__(self) -> None:
        """Check the fields, and the ending of the picture's name."""
        super().__post_init__()
        endings = (".png",) if self.strip else (".png", ".gif")
        if self.picture.suffix.lower() not in endings:
            raise UserError(f"--out should end in {' or '.join(endings)}, but is {self.out}")

    @property
    def picture(self) -> Path:
        """Path of the picture."""
        here = Path(f"{self.file}".removeprefix(files.ZOO))
        return here.with_suffix(".png") if self.out is None else self.out


def run(argv: list[str]) -> None:
    """Run the command with its arguments."""
    from trajmatch.cli.arguments import parse

    config = parse(ShowConfig, argv, "trajmatch show", "file")

    from trajmatch import zoo

    distilled = zoo.load(config.file, config.data)
    # Draw before the output folder is made, so that an error leaves no empty folder.
    picture = _draw(config, distilled)
    files.check_writable(config.picture.parent)
    files.write_bytes(config.picture, picture)
    print(config.picture)
    print(_stored(distilled), file=sys.stderr)


def _stored(distilled: Artifact) -> str:
    """Describe the stored values and, if the file has a test score, its accuracy or error."""
    from trajmatch.evaluate.sets import per_kb

    kind = "" if distilled.parametrisation is None else f" made by {distilled.parametrisation}"
    said = (
        f"{len(distilled.images)} images{kind}, {distilled.labels_are} labels, "
        f"{distilled.stored_values:,} values in {distilled.stored_bytes:,} bytes"
    )
    for score in distilled.scores[-1:]:
        if score.get("split") == "test":
            mean, share = score["mean"], per_kb(score["mean"], distilled.stored_bytes)
            accuracy = f"accuracy {mean:.1f} %, {share} % per kB"
            said += f", test {f'error {mean:.4g}' if distilled.loss == 'mse' else accuracy}"
    return said


def _draw(config: ShowConfig, distilled: Artifact) -> bytes:
    """Return the content of the picture file."""
    from trajmatch import pictures, snapshots

    names = distilled.class_names
    look = pictures.Look(config.clip, config.scale, config.per_class)
    animated = config.picture.suffix.lower() == ".gif"
    if not (animated or config.strip):
        pixels = distilled.preprocessing.invert(distilled.images)
        return pictures.grid(pixels, distilled.hard_labels, names, look)
    # The iterations are not in the distilled set, but in the snapshots beside it.
    path = config.snapshots or files.beside(config.file, ".snapshots.safetensors")
    if config.snapshots is None and not path.exists():
        raise UserError(
            f"{config.file} has no snapshots of its images beside it ({path.name}); give their "
            "file with --snapshots, or distil again without --snapshots 0"
        )
    found = snapshots.of_artifact(path, distilled)
    if config.strip:
        return snapshots.strip(found, names, look)
    return snapshots.animation(found, names, look, config.frame_seconds)
