"""A folder of files that appears as a whole, or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from trajmatch import files
from trajmatch.errors import UserError, as_user_error


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder to fill, and rename it to ``folder`` when all went well.

    Args:
        folder: The new folder; it does not exist, or is empty. Its parents are made.

    Yields:
        The folder to write in, beside the new one.

    Raises:
        UserError: There is something already, or it cannot be written.
    """
    folder = folder.absolute()  # the current folder has no name otherwise
    check_new(folder)
    temporary = files.temporary_beside(folder)
    try:
        with as_user_error(f"cannot write {folder}: ", OSError):
            temporary.mkdir(parents=True)
            yield temporary
            for path in (*temporary.rglob("*"), temporary):
                files.flush(path)
            os.replace(temporary, folder)
            files.flush(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_new(path: Path) -> None:
    """Make sure that nothing would be written over.

    Args:
        path: The file or folder to make. It does not exist, or is an empty folder.

    Raises:
        UserError: It exists.
    """
    with as_user_error(f"cannot write {path}: ", OSError):
        taken = path.exists() and (not path.is_dir() or any(path.iterdir()))
    if taken:
        raise UserError(f"{path} is there already; choose a new --out")
