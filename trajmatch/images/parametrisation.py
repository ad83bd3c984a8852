"""Interface of the parametrisations of the synthetic images."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from trajmatch.errors import UserError
from trajmatch.schema import settle

#: Tensors by name.
Tensors = Mapping[str, Tensor]

#: Maximum number of activation values to keep for the backward pass (1 GB in float32).
_MOST_VALUES = 2**28


class Parametrisation(ABC):
    """Base class of maps from learned tensors to images.

    Attributes:
        optimiser: Default for ``--optimiser-img``.
        lr: Default for ``--lr-img``.
    """

    optimiser: ClassVar[Literal["sgd", "adam"]] = "sgd"
    lr: ClassVar[float] = 100.0

    def images_per_class(self, ipc: int, shape: torch.Size) -> int:
        """Return the number of images per class that fit the storage budget of ``ipc`` images.

        ``shape`` is ``[C, H, W]``. UserError is raised if none fits, or if the settings do not suit
        the images.
        """
        return ipc

    @abstractmethod
    def initial(self, images: Tensor, classes: int) -> Tensors:
        """Return the initial parameters by name, from normalised images.

        Args:
            images: ``[n, C, H, W]``, float32, sorted by class, with the same number for each class.
            classes: Number of classes.

        Returns:
            Floating-point tensors, which are learned, and integer tensors, which are constant.
        """

    def extended(self, parameters: Tensors, images: Tensor, classes: int) -> Tensors:
        """Return parameters with new ``images`` appended to each class."""
        more = self.initial(images, classes)
        return {
            name: joined(each, more[name].to(each), classes) for name, each in parameters.items()
        }

    @abstractmethod
    def render(self, parameters: Tensors, shape: torch.Size) -> Tensor:
        """Return the images ``[n, C, H, W]``, float32, sorted by class; differentiable.

        Args:
            parameters: Tensors of :meth:`initial` or :meth:`stored`, on any device.
            shape: Image shape ``[C, H, W]``.
        """

    def stored(self, parameters: Tensors) -> Tensors:
        """Return the tensors for the distilled file; :meth:`render` accepts them as well."""
        return parameters

    def restored(self, stored: Tensors, shape: torch.Size) -> Tensors:
        """Return parameters that a run can continue from; they render the images of ``stored``."""
        return stored


class WithSettings(Parametrisation):
    """Base class of parametrisations with settings; checks the types of settings."""

    def __post_init__(self) -> None:
        settle(self, f"--images {type(self).__name__.lower()}: {{}}".format)


def joined(first: Tensor, more: Tensor, classes: int) -> Tensor:
    """Concatenate two tensors class by class: rows of ``first``, then rows of ``more``."""
    parts = [each.unflatten(0, (classes, -1)) for each in (first, more)]
    return torch.cat(parts, dim=1).flatten(0, 1)


def in_batches(render: Callable[..., Tensor], tensors: Sequence[Tensor], values: int) -> Tensor:
    """Call ``render`` on batches of rows if all rows at once would need much memory.

    Batches are checkpointed: the backward pass recomputes their activations. ``values`` is the
    number of activation values per row.
    """
    rows = max(1, _MOST_VALUES // values)
    if len(tensors[0]) <= rows:
        return render(*tensors)
    batches = zip(*(each.split(rows) for each in tensors), strict=True)
    # Rendering draws no random numbers, so the generator's state need not be kept.
    once = partial(checkpoint, render, use_reentrant=False, preserve_rng_state=False)
    return torch.cat([once(*batch) for batch in batches])


def paid_for(ipc: int, spec: str, values: int, shape: torch.Size, unit: str = "values") -> int:
    """Return the number of images, ``values`` numbers each, that fit the storage of ``ipc`` images.

    ``shape`` is ``[C, H, W]``; ``unit`` is for messages. UserError is raised if none fits.
    """
    pixels = shape.numel()
    if ipc * pixels >= values:
        return ipc * pixels // values
    raise UserError(
        f"--images {spec} stores {values} {unit} for each image, but the budget of --ipc {ipc} is "
        f"{ipc * pixels} {unit} per class ({ipc} x {pixels}); take --ipc {-(-values // pixels)} or "
        "more, or a smaller parametrisation"
    )
