"""The terms of the matching loss: comparisons of a student with an expert.

The matching loss is the sum of the terms that a run names. A term is an object with the methods of
:class:`Term`, in a file of its own with a line in :data:`TERMS`; ``package.module:NAME`` brings one
of a user's own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from trajmatch.distill.terms.automatic import Automatic as Automatic
from trajmatch.distill.terms.course import Course as Course
from trajmatch.distill.terms.course import Remembering as Remembering
from trajmatch.distill.terms.course import Term as Term
from trajmatch.distill.terms.course import Waypoint as Waypoint
from trajmatch.distill.terms.deep import Deep as Deep
from trajmatch.distill.terms.dropout import Dropout as Dropout
from trajmatch.distill.terms.final import Final as Final
from trajmatch.distill.terms.intermediate import Intermediate as Intermediate
from trajmatch.distill.terms.layers import Layers as Layers
from trajmatch.errors import UserError
from trajmatch.importing import made

#: The terms that have a name, made with the settings behind it.
TERMS: dict[str, Callable[..., Term]] = {
    "final": Final,
    "intermediate": partial(Intermediate, "equal"),
    "intermediate-rising": partial(Intermediate, "rising"),
    "automatic": Automatic,
    "deep": Deep,
    "dropout": Dropout,
    "layers": Layers,
}


def find_term(spec: str) -> Term:
    """Return the term of a spec.

    Args:
        spec: ``NAME`` or ``NAME:SETTINGS`` (:func:`trajmatch.importing.parsed`), where ``NAME`` is
            one of :data:`TERMS`, or ``package.module:NAME`` of an object with the methods of
            :class:`Term`, or of a class, or a function with settings, that makes one.

    Raises:
        UserError: There is none, or it does not take these settings.
    """
    term = made("--terms", "term", spec, TERMS)
    if not isinstance(term, Term):
        raise UserError(
            f"--terms {spec} should have the methods waypoints(steps, epochs) and loss(course), "
            f"but {type(term).__name__} lacks one"
        )
    if not isinstance(term, Remembering) and (hasattr(term, "memory") or hasattr(term, "remember")):
        raise UserError(
            f"--terms {spec} should have both of the methods memory(shapes) and remember(course), "
            "or neither"
        )
    return term
