"""Error class for mistakes of the user, warnings, and "did you mean" hints."""

import contextlib
import difflib
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

_FLAG = re.compile(r"(?<![\w-])--([a-z][a-z0-9]*(?:-[a-z0-9]+)*)")

#: Files that a warning does not point to: this package, and contextlib, which calls it.
_OURS = (f"{Path(__file__).parent}/", contextlib.__file__)


class UserError(ValueError):
    """Error for a file, data set or setting of the user that cannot be used.

    The command line prints the message, which names settings as flags (``--lr-img``), without a
    traceback and exits with status 2. ``str()`` names Python arguments instead (``lr_img``).
    """

    @property
    def in_flags(self) -> str:
        """Message that names settings as command-line flags."""
        return super().__str__()

    def __str__(self) -> str:
        return in_arguments(self.in_flags)

    def __format__(self, spec: str) -> str:
        """Return ``in_flags``, because ``str()`` of a UserError that quotes it converts flags."""
        return format(self.in_flags, spec)


@contextlib.contextmanager
def as_user_error(prefix: str = "", *kinds: type[Exception], advice: str = "") -> Iterator[None]:
    """Turn exceptions of the given kinds (default: ValueError) into UserError.

    The new message is ``prefix``, then the message of the exception, then ``advice``.
    """
    caught = kinds or (ValueError,)
    try:
        yield
    except caught as error:
        cause = getattr(error, "strerror", None) or error  # strerror of an OSError has no path
        if isinstance(error, UnicodeDecodeError):
            cause = f"it is not UTF-8 (byte {error.start})"
        raise UserError(f"{prefix}{cause}{advice}") from error


def warn(text: str, category: type[Warning] = UserWarning) -> None:
    """Issue a warning that points to the caller's line outside this package."""
    # Walk up the stack past the frames of this package.
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OURS):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, category, stacklevel=level)


def in_arguments(text: str) -> str:
    """Replace flags by names of Python arguments, except in commands, which are in backticks."""
    # After the split, even parts are outside of backticks.
    parts = text.split("`")
    parts[::2] = [_FLAG.sub(lambda flag: flag[1].replace("-", "_"), part) for part in parts[::2]]
    return "`".join(parts)


def closest(name: str, names: Iterable[str]) -> str:
    """Return `` (did you mean X?)`` with the most similar name, or ""."""
    close = difflib.get_close_matches(name, [*names], n=1)
    return f" (did you mean {close[0]}?)" if close else ""
