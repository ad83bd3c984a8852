"""The error that stands for a mistake of the user, and the hint at what was meant."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterable, Iterator

_FLAG = re.compile(r"(?<![\w-])--([a-z][a-z0-9]*(?:-[a-z0-9]+)*)")


class UserError(ValueError):
    """Something the user gave cannot be used: a file, a data set, a value of the configuration.

    The message says what came, what was wanted and what to do, with settings named as flags
    (``--lr-img``). The command line prints it so, without a traceback, and exits with status 2. In
    Python it is an ordinary ``ValueError`` that names arguments instead (``lr_img``).
    """

    @property
    def in_flags(self) -> str:
        """The message for a reader at a command line."""
        return super().__str__()

    def __str__(self) -> str:
        return in_arguments(self.in_flags)

    def __format__(self, spec: str) -> str:
        """Keep the flags inside an f-string: the message that it becomes part of renders them."""
        return format(self.in_flags, spec)


@contextlib.contextmanager
def as_user_error(prefix: str = "", *kinds: type[Exception], advice: str = "") -> Iterator[None]:
    """Turn errors into a UserError.

    Args:
        prefix: The beginning of the message, before that of the error.
        kinds: Of errors; ValueError if none is given.
        advice: The end of the message.
    """
    caught = kinds or (ValueError,)
    try:
        yield
    except caught as error:
        cause = getattr(error, "strerror", None) or error  # of the system: without the path
        if isinstance(error, UnicodeDecodeError):
            cause = f"it is not UTF-8 (byte {error.start})"
        raise UserError(f"{prefix}{cause}{advice}") from error


def in_arguments(text: str) -> str:
    """Name settings as in Python and TOML; commands, which stand in backticks, keep their flags."""
    parts = text.split("`")
    parts[::2] = [_FLAG.sub(lambda flag: flag[1].replace("-", "_"), part) for part in parts[::2]]
    return "`".join(parts)


def closest(name: str, names: Iterable[str]) -> str:
    """`` (did you mean X?)`` with the name that is most like the one given, or nothing."""
    close = difflib.get_close_matches(name, [*names], n=1)
    return f" (did you mean {close[0]}?)" if close else ""
