"""Output of commands: tables, and JSON that is alone on stdout."""

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
    """If ``wanted``, redirect stdout to stderr inside the block, also for C libraries."""
    if not wanted:
        yield
        return
    # User modules, dataset loaders and C libraries may print at any time, which would corrupt the
    # JSON. So redirect the file descriptor as well as Python's stream.
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
        ctypes.CDLL(None).fflush(None)  # C has its own buffer for this descriptor
        os.dup2(output, 1)
        os.close(output)


def aligned(head: Sequence[str], *rows: Sequence[str], rule: bool = False) -> str:
    """Return rows as a table with aligned columns; ``rule`` adds a line below the head."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    rows = (head, *([["-" * width for width in widths]] if rule else []), *rows)
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def print_json(result: Any, *, sort_keys: bool = True) -> None:
    """Print values as JSON; what the program prints during exit goes to stderr."""
    print(json.dumps(result, indent=2, sort_keys=sort_keys), flush=True)
    atexit.register(_end_output)


def _end_output() -> None:
    sys.stdout.flush()
    os.dup2(2, 1)
