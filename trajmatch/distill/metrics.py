"""The log of a run: one JSON object per line, which loggers get as well."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from trajmatch import files
from trajmatch.distill.loggers import Logger
from trajmatch.errors import UserError, as_user_error

#: Writes the numbers of an outer iteration or an evaluation; every line has ``iteration``.
Log = Callable[..., None]


@contextmanager
def metrics_log(path: Path, iteration: int, loggers: Sequence[Logger] = ()) -> Iterator[Log]:
    """Append to the log of a run.

    A resumed run first drops the lines beyond its checkpoint, because it does those iterations
    again. Numbers that are not finite become null, for which JSON has a word.

    Args:
        path: The file.
        iteration: Outer iterations done; lines after it are dropped.
        loggers: Get every new line, and are closed at the end.

    Raises:
        UserError: The file cannot be read or written, or is not such a log.
    """
    files.check_writable(path.parent)
    kept = _lines_until(path, iteration) if path.exists() else []
    files.write_text(path, "".join(kept))

    def write(**numbers: Any) -> None:
        line = {name: _finite(value) for name, value in numbers.items()}
        with (
            as_user_error(f"cannot write {path}: ", OSError),
            path.open("a", encoding="utf-8") as file,
        ):
            file.write(json.dumps(line) + "\n")
        for logger in loggers:
            logger.write(line)

    with ExitStack() as stack:
        for logger in loggers:
            stack.enter_context(closing(logger))
        yield write


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _lines_until(path: Path, iteration: int) -> list[str]:
    """Return the lines of the iterations up to the given one; a cut last line is dropped."""
    kept = []
    other = f"{path} is not a log of this program: "
    with (
        as_user_error(f"cannot read the log {path}: ", OSError),
        as_user_error(other, UnicodeDecodeError, advice="; choose another --log"),
    ):
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            done = json.loads(line)["iteration"]
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines) and not line.endswith("\n"):
                break
            raise UserError(
                f"{path} is not a log of this program (line {number}); choose another --log"
            ) from error
        if done <= iteration:
            kept.append(line)
    return kept
