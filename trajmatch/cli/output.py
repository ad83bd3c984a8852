"""Tables, and JSON as all that a command prints on the standard output."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any


@contextlib.contextmanager
def json_alone(wanted: bool) -> Iterator[None]:
    """Send what is printed meanwhile to the standard error stream, by whatever language.

    A module of the user, a data set's loader or a C library may print at any time.

    Args:
        wanted: True if the command prints JSON; otherwise nothing changes.
    """
    if not wanted:
        yield
        return
    sys.stdout.flush()
    output = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        for stream in (sys.stderr, sys.__stdout__):
            if stream is not None:
                stream.flush()
        ctypes.CDLL(None).fflush(None)  # what C has buffered for this descriptor
        os.dup2(output, 1)
        os.close(output)


def aligned(head: Sequence[str], *rows: Sequence[str], rule: bool = False) -> str:
    """Return rows of texts as the lines of a table, perhaps with a rule below the first."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    rows = (head, *([["-" * width for width in widths]] if rule else []), *rows)
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join(lines)


def print_json(result: Any, *, sort_keys: bool = True) -> None:
    """Print a result; what is printed later, when the program exits, goes to the error stream.

    Args:
        result: What JSON can hold.
        sort_keys: True for sorted keys, false for the order of the result.
    """
    print(json.dumps(result, indent=2, sort_keys=sort_keys), flush=True)
    atexit.register(_end_output)


def _end_output() -> None:
    sys.stdout.flush()
    os.dup2(2, 1)
