"""Reading files of data sets, with every failure as a message for the user."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from trajmatch.errors import UserError


def read_bytes(path: Path) -> bytes:
    """Reads a file whole.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        UserError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def read_gzip(path: Path) -> bytes:
    """Reads a file that was packed with gzip.

    Args:
        path: The file.

    Returns:
        What was packed.

    Raises:
        UserError: It cannot be read or is damaged.
    """
    packed = read_bytes(path)
    try:
        return gzip.decompress(packed)
    except (EOFError, OSError, zlib.error) as error:
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
