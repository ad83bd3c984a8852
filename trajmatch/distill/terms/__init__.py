"""Terms of the matching loss, which is their sum; :data:`TERMS` lists the built-in ones."""

from collections.abc import Callable
from functools import partial

from trajmatch.distill.terms.built_in import Automatic, Deep, Dropout, Final, Intermediate, Layers
from trajmatch.distill.terms.course import Course, Remembering, Term, Waypoint
from trajmatch.errors import UserError
from trajmatch.importing import made

__all__ = ["TERMS", "Course", "Remembering", "Term", "Waypoint", "find_term"]

#: Built-in terms by name, called with the settings that follow the name.
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
    """Return the term of a spec ``NAME`` or ``NAME:SETTINGS``.

    ``NAME`` is a key of :data:`TERMS`, or the ``package.module:NAME`` of a term or of a class or
    function that makes one. Settings are comma-separated values, then ``KEY=VALUE`` pairs.
    UserError is raised if there is no such term, or if it rejects the settings or lacks a method.
    """
    term = made("--terms", "term", spec, TERMS)
    if not isinstance(term, Term):
        raise UserError(
            f"--terms {spec} should have the methods waypoints(steps, epochs) and loss(course), "
            f"but {type(term).__name__} lacks one"
        )
    # With only one of the two methods, a term would silently remember nothing.
    if not isinstance(term, Remembering) and (hasattr(term, "memory") or hasattr(term, "remember")):
        raise UserError(
            f"--terms {spec} should have both of the methods memory(shapes) and remember(course), "
            "or neither"
        )
    return term
