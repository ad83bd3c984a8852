"""The frame of the programs of this folder."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence

from trajmatch.errors import UserError, in_flags
from trajmatch.memory import keep_freed_memory


def program(main: Callable[..., int]) -> Callable[..., int]:
    """Let a main function run as the program trajmatch does: same allocator, errors as messages."""

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None, *more: object) -> int:
        keep_freed_memory()
        try:
            with in_flags():
                return main(argv, *more)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2

    return run
