"""File access for data sets, with errors turned into messages for the user."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trajmatch.errors import UserError

#: Files and folders that operating systems create, in lower case.
_JUNK = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "$recycle.bin",
         "system volume information", "#recycle", "lost+found")  # fmt: skip


def is_junk(name: str) -> bool:
    """Return True for hidden files and files that operating systems create."""
    return name.startswith(".") or name.casefold() in _JUNK


def visible(folder: Path) -> list[Path]:
    """List the entries of a folder in alphabetical order, without junk."""
    return sorted(entry for entry in folder.iterdir() if not is_junk(entry.name))


def files_below(folder: Path) -> list[Path]:
    """List the files below a folder, without junk, sorted by folder and name as in torchvision."""
    found = []
    # Without ``onerror``, os.walk would skip an unreadable folder silently.
    for place, folders, files in os.walk(folder, onerror=_fail, followlinks=True):
        # Assigned in place, so that os.walk does not enter junk folders.
        folders[:] = [name for name in folders if not is_junk(name)]
        found.append((place, sorted(name for name in files if not is_junk(name))))
    return [Path(place, name) for place, names in sorted(found) for name in names]


def _fail(error: OSError) -> None:
    raise error


@contextmanager
def readable(what: str) -> Iterator[None]:
    """Convert OSError to UserError; ``what`` names the file if the error does not."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot read {error.filename or what}: {error.strerror or error}; "
            "check the path and its permissions"
        ) from error
