"""Snapshots of the images at several iterations of a distillation: file and pictures.

The file next to the artifact is for viewing (`trajmatch show`, `trajmatch report`). Preprocessing
is undone, and a large set keeps only some images of each class.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import msgspec
import torch
from torch import Tensor

from trajmatch import files, pictures
from trajmatch.artifact import Artifact
from trajmatch.errors import UserError
from trajmatch.schema import Count, convert

#: Half precision, which at pixel value 1 still resolves a quarter of a grey level.
DTYPE = torch.float16

#: Duration of the last animation frame, relative to the others.
_LAST_FRAMES = 4


@dataclass(frozen=True, repr=False)
class Snapshots:
    """Some images of each class at several iterations."""

    iterations: tuple[int, ...]  # ascending; 0 is the start of the run
    # Pixel values, not clipped; those of real images are in 0 to 1. [S, n, C, H, W], float16.
    images: Tensor
    labels: Tensor  # class of each image; [n], int64
    identity: Mapping[str, Any]  # see trajmatch.distill.problem.Problem.identity

    def until(self, iteration: int) -> "Snapshots":
        """Return the snapshots up to and including an iteration."""
        kept = sum(taken <= iteration for taken in self.iterations)
        return replace(self, iterations=self.iterations[:kept], images=self.images[:kept])

    def with_images(self, iteration: int, images: Tensor) -> "Snapshots":
        """Return a copy with one more snapshot: ``images``, pixel values ``[n, C, H, W]``."""
        # Clamp values that float16 would turn into infinity.
        largest = torch.finfo(DTYPE).max
        images = torch.cat([self.images, images.clamp(-largest, largest).to(DTYPE)[None]])
        return replace(self, iterations=(*self.iterations, iteration), images=images)

    def pixels(self, clip: pictures.Clip) -> list[Tensor]:
        """Return viewable pixels of each snapshot: ``[n, 1 or 3, H, W]``, uint8."""
        return [pictures.to_pixels(images.float(), clip) for images in self.images]


class _Description(msgspec.Struct, tag_field="format", tag="trajmatch snapshots"):
    """Metadata of the file."""

    iterations: tuple[Count, ...]
    identity: dict[str, Any]
    format_version: Literal[1] = 1


def save(path: files.PathLike, snapshots: Snapshots) -> None:
    """Write snapshots to a file atomically."""
    description = _Description(snapshots.iterations, dict(snapshots.identity))
    tensors = {"images": snapshots.images, "labels": snapshots.labels}
    files.save_tensors(path, tensors, msgspec.to_builtins(description))


def load(path: files.PathLike) -> Snapshots:
    """Read snapshots; raise UserError if the file is missing, damaged or of another kind."""
    tensors, metadata = files.load_tensors(path)
    place = f"{path} does not hold snapshots that this version reads"
    description = convert(metadata, _Description, place, "; give what `trajmatch distill` wrote")
    images, labels, taken = tensors.get("images"), tensors.get("labels"), description.iterations
    if (
        images is None
        or labels is None
        or (images.dtype, images.ndim, labels.dtype) != (DTYPE, 5, torch.int64)
        or (len(taken), *labels.shape) != images.shape[:2]
        or sorted({*taken}) != [*taken]
    ):
        raise UserError(f"{path} is damaged: its tensors do not fit its description")
    return Snapshots(taken, images, labels, description.identity)


def of_artifact(path: files.PathLike, artifact: Artifact) -> Snapshots:
    """Read the snapshots of the run that made an artifact.

    Raises UserError as :func:`load` does, or if the snapshots are empty or from another run.
    """
    found = load(path)
    made, seen = {**artifact.recipe, "seed": artifact.seed}, dict(found.identity)
    # If a run was resumed with another number of iterations, the snapshots still have the old one.
    if made.get("iterations") in found.iterations[-1:]:
        seen["iterations"] = made["iterations"]
    for name in sorted(made.keys() | seen.keys()):
        if made.get(name) != seen.get(name):
            raise UserError(
                f"{path} holds snapshots of another run: its {name} is {seen.get(name)}, but "
                f"the distilled set's {name} is {made.get(name)}"
            )
    known = bool(((found.labels >= 0) & (found.labels < artifact.num_classes)).all())
    same = found.images.shape[2:] == artifact.images.shape[1:]
    if found.images.numel() == 0 or not same or not known:
        raise UserError(
            f"{path} holds no snapshots of images with the shape and classes of the distilled set"
        )
    return found


def animation(
    snapshots: Snapshots,
    class_names: Sequence[str],
    look: pictures.Look = pictures.DEFAULT_LOOK,
    frame_seconds: float = 0.5,
) -> bytes:
    """Draw an animated GIF with a frame per snapshot and a row per class.

    Each frame is scaled to its own range of pixel values. The last frame stays four times as long.
    """
    frames = [
        pictures.by_class(pixels, snapshots.labels, class_names, look, f"iteration {iteration}")
        for iteration, pixels in zip(snapshots.iterations, snapshots.pixels(look.clip), strict=True)
    ]
    milliseconds = round(1000 * frame_seconds)
    durations = [milliseconds] * (len(frames) - 1) + [_LAST_FRAMES * milliseconds]
    buffer = io.BytesIO()
    frames[0].save(
        buffer, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0
    )
    return buffer.getvalue()


def strip(
    snapshots: Snapshots, class_names: Sequence[str], look: pictures.Look = pictures.DEFAULT_LOOK
) -> bytes:
    """Draw a PNG with a column per snapshot and a row per image; default: one image per class."""
    columns = snapshots.pixels(look.clip)
    # For each row the class name and the index of the image.
    rows = [
        (name, int(number))
        for k, name in enumerate(class_names)
        for number in (snapshots.labels == k).nonzero().flatten()[: look.per_class or 1]
    ]
    images = [[column[number] for column in columns] for _, number in rows]
    heads = [*map(str, snapshots.iterations)]
    return pictures.encode(
        pictures.table(images, [name for name, _ in rows], heads=heads, scale=look.scale)
    )
