"""The synthetic images that a run begins with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trajmatch.errors import UserError

if TYPE_CHECKING:
    from trajmatch.artifact import Artifact
    from trajmatch.data import Dataset


@dataclass(frozen=True)
class SyntheticSet:
    """Images with labels, ordered by class.

    Attributes:
        images: In normalised space. ``[n, C, H, W]``, float32.
        labels: Class indices ``[n]``, int64, or target logits ``[n, K]``, float32.
    """

    images: Tensor
    labels: Tensor


def from_real(dataset: Dataset, ipc: int, generator: torch.Generator) -> SyntheticSet:
    """Random real images of each class (MTT: ``pix_init=real``).

    Args:
        dataset: Where they are taken from: its training images.
        ipc: Images of each class.
        generator: Chooses them.

    Returns:
        ``num_classes * ipc`` images.

    Raises:
        UserError: A class has fewer than ``ipc`` images.
    """
    chosen = []
    for index, name in enumerate(dataset.class_names):
        members = (dataset.train_labels == index).nonzero().squeeze(1)
        if len(members) < ipc:
            raise UserError(
                f"--ipc {ipc} asks for more real images than class {name!r} of {dataset.name} has "
                f"({len(members)}); lower --ipc or use --init noise"
            )
        chosen.append(members[torch.randperm(len(members), generator=generator)[:ipc]])
    rows = torch.cat(chosen)
    return SyntheticSet(
        dataset.normalise(dataset.train_images[rows]), dataset.train_labels[rows].clone()
    )


def from_noise(dataset: Dataset, ipc: int, generator: torch.Generator) -> SyntheticSet:
    """Standard normal noise in normalised space (MTT: ``pix_init=noise``).

    Args:
        dataset: Gives the number of classes and the shape of the images.
        ipc: Images of each class.
        generator: Draws them.

    Returns:
        ``num_classes * ipc`` images.
    """
    count = dataset.num_classes * ipc
    images = torch.randn(count, *dataset.train_images.shape[1:], generator=generator)
    return SyntheticSet(images, torch.arange(dataset.num_classes).repeat_interleave(ipc))


def from_artifact(source: Artifact, path: Path, dataset: Dataset, ipc: int) -> SyntheticSet:
    """Images and labels of an earlier result.

    Args:
        source: The earlier result.
        path: Where it was read from, for messages.
        dataset: What the run is for; the images are brought into its normalisation.
        ipc: Images per class that the run asks for.

    Returns:
        The images and labels, of either kind.

    Raises:
        UserError: Classes, image shape or images per class are others.
    """
    shape = tuple(dataset.train_images.shape[1:])
    for what, found, wanted in (
        ("classes", source.class_names, dataset.class_names),
        ("images of shape", tuple(source.images.shape[1:]), shape),
        ("images in all", len(source.images), ipc * dataset.num_classes),
        ("images per class", source.ipc, ipc),
    ):
        if found != wanted:
            raise UserError(
                f"--init-from {path} does not fit this run: it has {what} {found}, and the run "
                f"(--ipc {ipc} on {dataset.name}) needs {wanted}"
            )
    images = source.images_normalised_by(dataset.mean, dataset.std)
    return SyntheticSet(images, source.labels)
