"""The interface of a parametrisation of the synthetic images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from trajmatch.errors import UserError
from trajmatch.schema import settle

#: Activations that are kept for a gradient (1 GB in float32); beyond, they are computed again.
_MOST_VALUES = 2**28


class Parametrisation(ABC):
    """A way to make images of the tensors that are learned.

    Attributes:
        optimiser: Optimiser of the parameters where ``--optimiser-img`` does not name one.
        lr: Its learning rate where ``--lr-img`` does not say.
    """

    optimiser: ClassVar[Literal["sgd", "adam"]] = "sgd"
    lr: ClassVar[float] = 100.0

    def images_per_class(self, ipc: int, shape: torch.Size) -> int:
        """Return the number of images of a class that the values of ``ipc`` images pay for.

        Args:
            ipc: IPC, the budget: images per class whose pixels may be stored.
            shape: Shape of an image, ``[C, H, W]``.

        Raises:
            UserError: They pay for none, or the settings do not fit the images.
        """
        return ipc

    @abstractmethod
    def initial(self, images: Tensor, classes: int) -> Mapping[str, Tensor]:
        """Return the first value of each parameter, by name.

        Args:
            images: The images that the run begins with, normalised. ``[n, C, H, W]``, float32,
                the same number of every class, class by class.
            classes: Number of classes.

        Returns:
            Floating-point tensors, which are learned, and integer ones, which are constants.
        """

    def extended(
        self, parameters: Mapping[str, Tensor], images: Tensor, classes: int
    ) -> Mapping[str, Tensor]:
        """Return parameters of some images and of more of each class after them.

        Args:
            parameters: Those of the first images, by name.
            images: The images to add, as :meth:`initial` takes them.
            classes: Number of classes.
        """
        more = self.initial(images, classes)
        return {
            name: joined(each, more[name].to(each), classes) for name, each in parameters.items()
        }

    @abstractmethod
    def render(self, parameters: Mapping[str, Tensor], shape: torch.Size) -> Tensor:
        """Return the images of some parameters, differentiably.

        Args:
            parameters: The tensors of :meth:`initial` or of :meth:`stored`, on any device.
            shape: Shape of an image, ``[C, H, W]``.

        Returns:
            ``[n, C, H, W]``, float32, class by class.
        """

    def stored(self, parameters: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the tensors that a distilled file keeps, from which :meth:`render` makes images.

        Args:
            parameters: The tensors of :meth:`initial`, after the run.
        """
        return parameters

    def restored(self, stored: Mapping[str, Tensor], shape: torch.Size) -> Mapping[str, Tensor]:
        """Return parameters to go on from, which show the images of what :meth:`stored` returned.

        Args:
            stored: The tensors of a distilled file.
            shape: Shape of an image, ``[C, H, W]``.
        """
        return stored


class WithSettings(Parametrisation):
    """Base of dataclasses whose settings have checked types."""

    def __post_init__(self) -> None:
        """Check the settings."""
        settle(self, f"--images {type(self).__name__.lower()}: {{}}".format)


def joined(first: Tensor, more: Tensor, classes: int) -> Tensor:
    """Return two tensors as one, class by class: of each the rows of the first, then the others."""
    parts = [each.unflatten(0, (classes, -1)) for each in (first, more)]
    return torch.cat(parts, dim=1).flatten(0, 1)


def in_batches(render: Callable[..., Tensor], tensors: Sequence[Tensor], values: int) -> Tensor:
    """Render the images in batches where all at once would take much memory.

    The activations of a batch are not kept, but computed again where a gradient is taken.

    Args:
        render: Makes the images of some rows of the tensors.
        tensors: With a row for each image.
        values: Values that the activations of one image take.
    """
    rows = max(1, _MOST_VALUES // values)
    if len(tensors[0]) <= rows:
        return render(*tensors)
    batches = zip(*(each.split(rows) for each in tensors), strict=True)
    once = partial(checkpoint, render, use_reentrant=False, preserve_rng_state=False)
    return torch.cat([once(*batch) for batch in batches])


def paid_for(ipc: int, spec: str, values: int, shape: torch.Size) -> int:
    """Return the number of images of a class that the values of ``ipc`` images pay for.

    Args:
        ipc: The budget.
        spec: The parametrisation, for the message.
        values: Values that one image takes.
        shape: Shape of an image.

    Raises:
        UserError: It pays for none; the message names the budget that would.
    """
    pixels = shape.numel()
    if ipc * pixels >= values:
        return ipc * pixels // values
    raise UserError(
        f"--images {spec} stores {values} values for each image, but --ipc {ipc} pays for "
        f"{ipc * pixels} in a class ({ipc} x {pixels}); take --ipc {-(-values // pixels)} or more, "
        "or a smaller parametrisation"
    )
