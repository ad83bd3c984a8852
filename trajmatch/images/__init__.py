"""Parametrisations of the synthetic images: learned tensors, and the images made from them.

Each is a dataclass in its own file, listed in :data:`PARAMETRISATIONS`. ``package.module:NAME``
names a user's own.
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

#: Built-in parametrisations by name.
PARAMETRISATIONS: dict[str, type[Parametrisation]] = {
    "pixels": Pixels,
    "flip": Flip,
    "upsample": Upsample,
    "frequency": Frequency,
    "implicit": Implicit,
    "palette": Palette,
}


def find_parametrisation(spec: str) -> Parametrisation:
    """Return the parametrisation for ``NAME`` or ``NAME:k=v,...``.

    ``NAME`` is a key of :data:`PARAMETRISATIONS` or ``package.module:NAME``; settings are arguments
    of the class.

    Raises:
        UserError: The name is unknown, or the settings are invalid.
    """
    found: Parametrisation = made("--images", "parametrisation", spec, PARAMETRISATIONS)
    expect_kind(f"--images {spec}", found, Parametrisation)
    return found


def is_built_in(spec: str) -> bool:
    """Return True if reading a file with this parametrisation runs only the package's code."""
    return parsed("--images", spec, PARAMETRISATIONS)[0] in PARAMETRISATIONS
