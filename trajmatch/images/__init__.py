"""Parametrisations of the synthetic images: maps from learned tensors to images.

:data:`PARAMETRISATIONS` lists the built-in ones; ``package.module:NAME`` is a class of the user.
"""

from trajmatch.images.frequency import Frequency
from trajmatch.images.implicit import Implicit
from trajmatch.images.palette import Palette
from trajmatch.images.parametrisation import Parametrisation as Parametrisation
from trajmatch.images.pixels import Flip, Pixels, Upsample
from trajmatch.importing import expect_kind, made, parsed

#: Built-in parametrisations by name.
PARAMETRISATIONS: dict[str, type[Parametrisation]] = {
    each.__name__.lower(): each for each in (Pixels, Flip, Upsample, Frequency, Implicit, Palette)
}


def find_parametrisation(spec: str) -> Parametrisation:
    """Return the parametrisation that ``spec`` describes: ``NAME`` or ``NAME:KEY=VALUE,...``.

    ``NAME`` is a key of :data:`PARAMETRISATIONS` or ``package.module:NAME``. ``KEY=VALUE`` pairs
    are arguments of the class. UserError is raised if the name is unknown or a setting is invalid.
    """
    found: Parametrisation = made("--images", "parametrisation", spec, PARAMETRISATIONS)
    expect_kind(f"--images {spec}", found, Parametrisation)
    return found


def is_built_in(spec: str) -> bool:
    """Return True if ``spec`` names a built-in parametrisation, which runs no user code."""
    return parsed("--images", spec, PARAMETRISATIONS)[0] in PARAMETRISATIONS
