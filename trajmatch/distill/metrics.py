"""The log of a run: one JSON object per line, and whoever else is told."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from trajmatch import files
from trajmatch.distill.loggers import Logger
from trajmatch.errors import UserError


class MetricsLog:
    """Appends one line for each outer iteration and each evaluation; every line has `iteration`.

    A run that goes on drops the lines beyond its checkpoint first, because it does those iterations
    again.

    Args:
        path: The file.
        iteration: Outer iterations done; lines after it are dropped.
        loggers: Are told what every new line holds, and closed at the end.

    Raises:
        UserError: The file cannot be read or written, or is not such a log.
    """

    def __init__(self, path: Path, iteration: int, loggers: Sequence[Logger] = ()) -> None:
        """Drops what is beyond the checkpoint; see the class."""
        self._path = path
        self._loggers = loggers
        files.check_writable(path.parent)
        kept = _lines_until(path, iteration) if path.exists() else []
        files.write_text(path, "".join(kept))
        self._file: TextIO | None = None

    def __enter__(self) -> MetricsLog:
        """Opens the file for appending."""
        try:
            self._file = self._path.open("a", encoding="utf-8", buffering=1)
        except OSError as error:
            raise UserError(f"cannot write {self._path}: {error.strerror}") from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Closes the file."""
        if self._file is not None:
            try:
                self._file.close()  # which writes what is left
            except OSError as error:
                if value is None:
                    raise UserError(f"cannot write {self._path}: {error.strerror}") from error
            finally:
                for logger in self._loggers:
                    logger.close()

    def write(self, **numbers: Any) -> None:
        """Appends a line. What is not finite becomes null, for which JSON has a word."""
        assert self._file is not None
        finite = {name: _finite(value) for name, value in numbers.items()}
        try:
            self._file.write(json.dumps(finite) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {self._path}: {error.strerror}") from error
        for logger in self._loggers:
            logger.write(finite)


class NoLog:
    """The log of a process that leaves it to another one."""

    def write(self, **numbers: Any) -> None:
        """Writes nothing."""


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _lines_until(path: Path, iteration: int) -> list[str]:
    """The lines of the iterations up to and with the given one; a cut last line is dropped."""
    kept = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except OSError as error:
        raise UserError(f"cannot read the log {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not a log of this program (byte {error.start} is not UTF-8); choose "
            "another --log"
        ) from error
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
