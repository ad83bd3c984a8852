"""The error that stands for a mistake of the user, and the hint at what was meant."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterable, Iterator

_FLAG = re.compile(r"(?<![\w-])--([a-z][a-z0-9]*(?:-[a-z0-9]+)*)")

_on_command_line = False


class UserError(ValueError):
    """Something the user gave cannot be used: a file, a data set, a value of the configuration.

    The message says what came, what was wanted and what to do, with settings named as flags
    (``--lr-img``). The command line prints it so, without a traceback, and exits with status 2. In
    Python it is an ordinary ``ValueError`` that names arguments instead (``lr_img``).
    """

    def __str__(self) -> str:
        """Return the message with the names that settings have where it is read."""
        text = super().__str__()
        return text if _on_command_line else in_arguments(text)


@contextlib.contextmanager
def in_flags() -> Iterator[None]:
    """Let messages name settings as flags: the reader is at a command line."""
    global _on_command_line
    before, _on_command_line = _on_command_line, True
    try:
        yield
    finally:
        _on_command_line = before


def in_arguments(text: str) -> str:
    """Name settings as in Python and TOML; commands, which stand in backticks, keep their flags."""
    parts = text.split("`")
    parts[::2] = [_FLAG.sub(lambda flag: flag[1].replace("-", "_"), part) for part in parts[::2]]
    return "`".join(parts)


def closest(name: str, names: Iterable[str]) -> str:
    """`` (did you mean X?)`` with the name that is most like the one given, or nothing."""
    close = difflib.get_close_matches(name, [*names], n=1)
    return f" (did you mean {close[0]}?)" if close else ""
