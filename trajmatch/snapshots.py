"""Pixels of the images at several iterations of a distillation, in one file.

The file lies beside the artifact and is there to be looked at: `trajmatch show` animates it and
`trajmatch report` draws it. The preprocessing is undone; of large sets it has a part of each class.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trajmatch import files
from trajmatch.errors import UserError

if TYPE_CHECKING:
    from trajmatch.artifact import Artifact

FORMAT = "trajmatch snapshots"
FORMAT_VERSION = 1

#: Half precision: a distilled pixel of size 1 is still kept to a quarter of a grey level.
DTYPE = torch.float16


@dataclass(frozen=True)
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

    def __repr__(self) -> str:
        """Say in one line when they were taken, without the images."""
        return f"<Snapshots of {len(self.labels)} images after {[*self.iterations]} iterations>"

    def until(self, iteration: int) -> Snapshots:
        """Those taken at an iteration or before."""
        kept = sum(taken <= iteration for taken in self.iterations)
        return replace(self, iterations=self.iterations[:kept], images=self.images[:kept])

    def with_images(self, iteration: int, images: Tensor) -> Snapshots:
        """The same and one more.

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


def save(path: str | os.PathLike[str], snapshots: Snapshots) -> None:
    """Writes snapshots, whole or not at all.

    Args:
        path: The file. Its folder must exist.
        snapshots: What to write.

    Raises:
        UserError: The file cannot be written.
    """
    files.save_tensors(
        path,
        {"images": snapshots.images, "labels": snapshots.labels},
        {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "iterations": list(snapshots.iterations),
            "identity": dict(snapshots.identity),
        },
    )


def load(path: str | os.PathLike[str]) -> Snapshots:
    """Reads snapshots.

    Args:
        path: A file that :func:`save` wrote.

    Returns:
        The snapshots.

    Raises:
        UserError: The file is missing, damaged or of another kind.
    """
    tensors, metadata = files.load_tensors(path)
    if (metadata.get("format"), metadata.get("format_version")) != (FORMAT, FORMAT_VERSION):
        raise UserError(
            f"{path} does not hold snapshots that this version reads, but a "
            f"{metadata.get('format', 'file of another kind')}; give what `trajmatch distill` wrote"
        )
    iterations, identity = metadata.get("iterations"), metadata.get("identity")
    images, labels = tensors.get("images"), tensors.get("labels")
    if (
        images is None
        or labels is None
        or images.dtype != DTYPE
        or labels.dtype != torch.int64
        or images.ndim != 5
        or labels.shape != images.shape[1:2]
        or not isinstance(identity, dict)
        or not _ascending(iterations, len(images))
    ):
        raise UserError(f"{path} is damaged: its tensors do not fit its description")
    assert isinstance(iterations, list)
    return Snapshots(tuple(iterations), images, labels, identity)


def of_artifact(path: str | os.PathLike[str], artifact: Artifact) -> Snapshots:
    """Reads the snapshots of the run that an artifact came from.

    Args:
        path: A file that :func:`save` wrote.
        artifact: The result of the run.

    Returns:
        The snapshots; one at least.

    Raises:
        UserError: See :func:`load`; or they are of another run, or there is none.
    """
    found = load(path)
    made = {**artifact.recipe, "seed": artifact.seed}
    for name in sorted((made.keys() | found.identity.keys()) - {"iterations"}):
        if made.get(name) != found.identity.get(name):
            raise UserError(
                f"{path} holds snapshots of another run: its {name} is "
                f"{found.identity.get(name)}, and that of the distilled set is {made.get(name)}"
            )
    # Snapshots of a run that went on to another number of iterations say the number it began with.
    begun_for, end = found.identity.get("iterations"), made.get("iterations")
    if end not in (begun_for, *found.iterations[-1:]):
        raise UserError(
            f"{path} holds snapshots of another run: its iterations are {begun_for}, and those of "
            f"the distilled set are {end}"
        )
    shape, wanted = tuple(found.images.shape[2:]), tuple(artifact.images.shape[1:])
    known = bool(((found.labels >= 0) & (found.labels < artifact.num_classes)).all())
    if found.images.numel() == 0 or shape != wanted or not known:
        raise UserError(f"{path} holds no snapshots of images like those of the distilled set")
    return found


def _ascending(iterations: object, count: int) -> bool:
    """Whether something from a file is that many whole numbers, each above the one before."""
    return (
        isinstance(iterations, list)
        and len(iterations) == count
        and all(type(each) is int and each >= 0 for each in iterations)
        and all(one < other for one, other in itertools.pairwise(iterations))
    )
