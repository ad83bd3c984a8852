"""Pixels of the images at several iterations of a distillation: their file, and its pictures.

The file lies beside the artifact and is there to be looked at, by `trajmatch show` and `trajmatch
report`. The preprocessing is undone; of large sets it has a part of each class.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import torch
from torch import Tensor

from trajmatch import files, pictures
from trajmatch.errors import UserError
from trajmatch.schema import Count, convert

if TYPE_CHECKING:
    from trajmatch.artifact import Artifact

#: Half precision: a distilled pixel of size 1 is still kept to a quarter of a grey level.
DTYPE = torch.float16

#: The last frame of an animation stays this many times as long as the others.
_LAST_FRAMES = 4


@dataclass(frozen=True, repr=False)
class Snapshots:
    """Some images of each class at several iterations.

    Attributes:
        iterations: When each was taken, ascending; 0 is the beginning of the run.
        images: Pixel values, real images from 0 to 1, not clipped. ``[S, n, C, H, W]``, float16.
        labels: Class of each image. ``[n]``, int64.
        identity: Settings and seed of the run
            (:attr:`trajmatch.distill.problem.Problem.identity`).
    """

    iterations: tuple[int, ...]
    images: Tensor
    labels: Tensor
    identity: Mapping[str, Any]

    def until(self, iteration: int) -> Snapshots:
        """Return the snapshots taken at an iteration or before."""
        kept = sum(taken <= iteration for taken in self.iterations)
        return replace(self, iterations=self.iterations[:kept], images=self.images[:kept])

    def with_images(self, iteration: int, images: Tensor) -> Snapshots:
        """Return the same and one more.

        Args:
            iteration: When it is taken, after all others.
            images: Pixel values. ``[n, C, H, W]``, floating point.
        """
        largest = torch.finfo(DTYPE).max
        newest = images.clamp(-largest, largest).to(DTYPE)[None]
        return replace(
            self,
            iterations=(*self.iterations, iteration),
            images=torch.cat([self.images, newest]),
        )

    def pixels(self, clip: pictures.Clip) -> list[Tensor]:
        """Return the pixels to show of each snapshot. ``[n, 1 or 3, H, W]`` each, uint8."""
        return [pictures.to_pixels(images.float(), clip) for images in self.images]


class _Description(msgspec.Struct, tag_field="format", tag="trajmatch snapshots"):
    """Metadata of the file."""

    iterations: tuple[Count, ...]
    identity: dict[str, Any]
    format_version: Literal[1] = 1


def save(path: str | os.PathLike[str], snapshots: Snapshots) -> None:
    """Write snapshots, whole or not at all.

    Args:
        path: The file. Its folder must exist.
        snapshots: What to write.

    Raises:
        UserError: The file cannot be written.
    """
    description = _Description(snapshots.iterations, dict(snapshots.identity))
    tensors = {"images": snapshots.images, "labels": snapshots.labels}
    files.save_tensors(path, tensors, msgspec.to_builtins(description))


def load(path: str | os.PathLike[str]) -> Snapshots:
    """Read snapshots.

    Args:
        path: A file that :func:`save` wrote.

    Raises:
        UserError: The file is missing, damaged or of another kind.
    """
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


def of_artifact(path: str | os.PathLike[str], artifact: Artifact) -> Snapshots:
    """Read the snapshots of the run that an artifact came from; one at least.

    Args:
        path: A file that :func:`save` wrote.
        artifact: The result of the run.

    Raises:
        UserError: See :func:`load`; or they are of another run, or there is none.
    """
    found = load(path)
    made, seen = {**artifact.recipe, "seed": artifact.seed}, dict(found.identity)
    # Snapshots of a run that went on to another number of iterations say the number it began with.
    if made.get("iterations") in found.iterations[-1:]:
        seen["iterations"] = made["iterations"]
    for name in sorted(made.keys() | seen.keys()):
        if made.get(name) != seen.get(name):
            raise UserError(
                f"{path} holds snapshots of another run: its {name} is {seen.get(name)}, and that "
                f"of the distilled set is {made.get(name)}"
            )
    known = bool(((found.labels >= 0) & (found.labels < artifact.num_classes)).all())
    same = found.images.shape[2:] == artifact.images.shape[1:]
    if found.images.numel() == 0 or not same or not known:
        raise UserError(f"{path} holds no snapshots of images like those of the distilled set")
    return found


def animation(
    snapshots: Snapshots,
    class_names: Sequence[str],
    look: pictures.Look = pictures.DEFAULT_LOOK,
    frame_seconds: float = 0.5,
) -> bytes:
    """Draw an animated GIF file: a frame per snapshot, a row per class, the iteration above.

    Args:
        snapshots: One or more.
        class_names: Name of each class.
        look: How they are drawn; each snapshot is scaled by itself.
        frame_seconds: How long a frame stays; the last stays four times as long.
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
    """Draw a PNG file with a column for each snapshot and a row for each image.

    Args:
        snapshots: One or more.
        class_names: Name of each class.
        look: How they are drawn; by default one image of each class.
    """
    columns = snapshots.pixels(look.clip)
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
