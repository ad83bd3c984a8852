"""Parametrisations of the synthetic images: the tensors that are learned, and images made of them.

A parametrisation is a dataclass in a file of its own, with a line in :data:`PARAMETRISATIONS`;
``package.module:NAME`` brings one of a user's own.
"""

from __future__ import annotations

from trajmatch.images.flip import Flip
from trajmatch.images.frequency import Frequency
from trajmatch.images.implicit import Implicit
from trajmatch.images.palette import Palette
from trajmatch.images.parametrisation import Parametrisation as Parametrisation
from trajmatch.images.pixels import Pixels
from trajmatch.images.upsample import Upsample
from trajmatch.importing import expect_kind, made, parsed

#: The parametrisations that have a name.
PARAMETRISATIONS: dict[str, type[Parametrisation]] = {
    "pixels": Pixels,
    "flip": Flip,
    "upsample": Upsample,
    "frequency": Frequency,
    "implicit": Implicit,
    "palette": Palette,
}


def find_parametrisation(spec: str) -> Parametrisation:
    """Return the parametrisation of a spec.

    Args:
        spec: ``NAME`` or ``NAME:k=v,...``, where ``NAME`` is one of :data:`PARAMETRISATIONS` or
            ``package.module:NAME``; the settings are arguments of the class.

    Raises:
        UserError: There is none, or it does not take these settings.
    """
    found: Parametrisation = made("--images", "parametrisation", spec, PARAMETRISATIONS)
    expect_kind(f"--images {spec}", found, Parametrisation)
    return found


def is_built_in(spec: str) -> bool:
    """Return True if reading a file of this parametrisation runs no code but the package's."""
    return parsed("--images", spec, PARAMETRISATIONS)[0] in PARAMETRISATIONS
