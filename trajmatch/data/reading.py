"""Reading files of data sets, with every failure as a message for the user."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trajmatch.errors import UserError


@contextmanager
def readable(what: str) -> Iterator[None]:
    """Turns what the operating system refuses inside the block into a message.

    Args:
        what: What is being read, for the message where the system names no file.

    Raises:
        UserError: A file or folder cannot be read.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot read {error.filename or what}: {error.strerror or error}; "
            "check the path and its permissions"
        ) from error


def read_gzip(path: Path) -> bytes:
    """Reads a file that was packed with gzip.

    Args:
        path: The file.

    Returns:
        What was packed.

    Raises:
        OSError: It cannot be read.
        UserError: It is damaged.
    """
    packed = path.read_bytes()
    try:
        return gzip.decompress(packed)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(
            f"{path} is cut off or not a gzip file ({error}); download it again"
        ) from error


def check_folder(path: Path) -> None:
    """Makes sure that a folder is there.

    Args:
        path: The folder.

    Raises:
        UserError: It is missing, or something else.
    """
    if not path.is_dir():
        problem = "is not a folder" if path.exists() else "does not exist"
        raise UserError(f"the data folder {path} {problem}; give the folder that holds the data")
