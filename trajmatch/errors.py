"""The error that stands for a mistake of the user, and the hint at what was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user gave cannot be used: a file, a data set, a value of the configuration.

    The message says what came, what was wanted and what to do. The command line prints it as it is,
    without a traceback, and exits with status 2; from Python it is an ordinary ``ValueError``.
    """


def closest(name: str, names: Iterable[str]) -> str:
    """`` (did you mean X?)`` with the name that is most like the one given, or nothing."""
    close = difflib.get_close_matches(name, [*names], n=1)
    return f" (did you mean {close[0]}?)" if close else ""
