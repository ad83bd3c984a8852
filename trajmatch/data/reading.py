"""Reading files of data sets, with every failure as a message for the user."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trajmatch.errors import UserError

#: What systems put into folders by themselves, in small letters; hidden files are left out as well.
_JUNK = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "$recycle.bin",
         "system volume information", "#recycle", "lost+found")  # fmt: skip


def is_junk(name: str) -> bool:
    """True for a file or folder that is hidden, or that a system made by itself."""
    return name.startswith(".") or name.casefold() in _JUNK


def visible(folder: Path) -> list[Path]:
    """List what is in a folder, without junk, in alphabetical order.

    Args:
        folder: The folder.

    Raises:
        OSError: It cannot be read.
    """
    return sorted(entry for entry in folder.iterdir() if not is_junk(entry.name))


def files_below(folder: Path) -> list[Path]:
    """List the files of a folder and of all folders in it, without junk.

    They are in the order of torchvision's ``ImageFolder``: by folder, then by name.

    Args:
        folder: The folder; links are followed.

    Raises:
        OSError: A folder cannot be read.
    """
    found = []
    for place, folders, files in os.walk(folder, onerror=_fail, followlinks=True):
        folders[:] = [name for name in folders if not is_junk(name)]
        found.append((place, sorted(name for name in files if not is_junk(name))))
    return [Path(place, name) for place, names in sorted(found) for name in names]


def _fail(error: OSError) -> None:
    raise error


@contextmanager
def readable(what: str) -> Iterator[None]:
    """Turn what the operating system refuses inside the block into a message.

    Args:
        what: Name of the file or folder, for the message where the system gives none.

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
