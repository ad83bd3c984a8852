"""Parametrisations of the synthetic images: what is learned, and how images come of it.

A parametrisation is a dataclass with the two methods of :class:`Parametrisation`, in a file of its
own, and a line in :data:`PARAMETRISATIONS`; ``package.module:NAME`` brings one of a user's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from trajmatch.distill.images.pixels import Pixels
from trajmatch.distill.parameters import LABELS, STEP_SIZE, SyntheticSet
from trajmatch.errors import UserError
from trajmatch.importing import blamed, described, named


@runtime_checkable
class Parametrisation(Protocol):
    """A way to make images of the tensors that are learned."""

    def initial(self, images: Tensor) -> Mapping[str, Tensor]:
        """Return the first value of each parameter, by name.

        Args:
            images: The images that the run begins with, normalised. ``[n, C, H, W]``, float32.
        """

    def render(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return the images of some parameters, differentiably.

        Args:
            parameters: The tensors of :meth:`initial`, on any device, among others.

        Returns:
            ``[n, C, H, W]``, in the order of the classes.
        """


#: The parametrisations that have a name.
PARAMETRISATIONS: dict[str, type[Parametrisation]] = {"pixels": Pixels}


def find_parametrisation(spec: str) -> Parametrisation:
    """Return the parametrisation of a spec.

    Args:
        spec: ``NAME`` or ``NAME:k=v,...``, where ``NAME`` is one of :data:`PARAMETRISATIONS` or
            ``package.module:NAME``; the settings are keyword arguments of the class.

    Raises:
        UserError: There is none, or it does not take these settings.
    """
    name, settings = _parsed(spec)
    kind: Any = named("--images", "parametrisation", name, PARAMETRISATIONS)
    with blamed(f"--images {spec}"):
        made = kind(**settings) if settings or isinstance(kind, type) else kind
    if not isinstance(made, Parametrisation):
        raise UserError(
            f"--images {spec} should have the methods initial(images) and render(parameters), but "
            f"{described(made)} lacks one"
        )
    return made


def render(parametrisation: Parametrisation, parameters: Mapping[str, Tensor]) -> SyntheticSet:
    """Return the synthetic set of some outer parameters, differentiably."""
    return SyntheticSet(parametrisation.render(parameters), parameters[LABELS])


def initial_parameters(
    parametrisation: Parametrisation, spec: str, images: Tensor
) -> dict[str, Tensor]:
    """Return the parameters of the first images, once they have been rendered and checked.

    Args:
        parametrisation: Makes them.
        spec: Its spec, for messages.
        images: The first images. ``[n, C, H, W]``, float32.

    Raises:
        UserError: The parametrisation fails, or returns something that cannot be learned or shown.
    """
    with blamed(f"initial of --images {spec}"):
        made = parametrisation.initial(images)
    if not isinstance(made, Mapping) or not all(isinstance(each, Tensor) for each in made.values()):
        raise UserError(
            f"--images {spec}: initial should return tensors by name, but returned "
            f"{described(made)}"
        )
    parameters = {str(name): tensor.detach().clone() for name, tensor in made.items()}
    if taken := {LABELS, STEP_SIZE} & parameters.keys():
        raise UserError(f"--images {spec}: the name {taken.pop()!r} is taken; choose another")
    if not any(tensor.is_floating_point() for tensor in parameters.values()):
        raise UserError(f"--images {spec}: initial returned nothing that can be learned")
    with blamed(f"render of --images {spec}"), torch.no_grad():
        rendered = parametrisation.render(parameters)
    if not isinstance(rendered, Tensor) or rendered.shape != images.shape:
        raise UserError(
            f"--images {spec}: render should return images of shape {list(images.shape)}, but "
            f"returned {described(rendered)}"
        )
    return parameters


def _parsed(spec: str) -> tuple[str, dict[str, Any]]:
    """Split a spec into the name and the settings."""
    name, colon, text = spec.rpartition(":")
    if not colon or "=" not in text:
        return spec, {}
    settings: dict[str, Any] = {}
    for each in text.split(","):
        key, equals, value = each.partition("=")
        if not equals:
            raise UserError(f"--images {spec}: {each!r} should be NAME=VALUE")
        settings[key] = _number(value)
    return name, settings


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text
