"""File locks that keep two processes from writing the same file or folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from trajmatch import files
from trajmatch.errors import UserError, as_user_error, warn

#: Attempts to lock a file whose previous holder may remove it. More would be a file system fault.
_TRIES = 100

_held: set[int] = set()


@contextlib.contextmanager
def locked(path: Path, *, inside: bool = False) -> Iterator[None]:
    """Hold the file lock of a file or folder while this process writes it.

    The lock is an ``flock`` on a hidden file. The system frees it when this process and its
    :mod:`~trajmatch.children` have ended, so a file left by a killed process locks nothing. On file
    systems without locks it only warns.

    Args:
        path: The file or folder.
        inside: True to put the lock file into the folder ``path`` (made if missing), not next to
            it: the parent need not be writable then.

    Raises:
        UserError: Another process holds the lock (named), or the lock file cannot be written.
    """
    whole = path.absolute()  # the path "." has no name
    file = whole / ".lock" if inside else whole.with_name(f".{whole.name}.lock")
    files.check_writable(file.parent)
    descriptor = _acquire(file, path)
    if descriptor is None:
        yield
        return
    _held.add(descriptor)
    try:
        yield
    finally:
        _held.remove(descriptor)
        with contextlib.suppress(OSError):
            if _is_there(descriptor, file):
                file.unlink()  # before closing: nobody else can hold the lock on this name yet
        os.close(descriptor)


def held() -> list[int]:
    """Return the file descriptors of the held locks, to pass to child processes."""
    return sorted(_held)


def _acquire(file: Path, path: Path) -> int | None:
    """Return a descriptor of the locked file; None if the file system has no locks."""
    for tries_left in reversed(range(_TRIES)):
        with as_user_error(f"cannot write {file}: ", OSError):
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 500, 0).decode(errors="replace") or "another process"
            os.close(descriptor)
            raise UserError(
                f"{path} is being written by {holder}; wait until it and its child processes have "
                "ended, stop them, or choose another --out"
            ) from None
        except OSError as error:
            os.close(descriptor)
            file.unlink(missing_ok=True)
            warn(
                f"{file.parent} is on a file system without locks ({error.strerror}); let no "
                f"second process write {path}"
            )
            return None
        # The previous holder may have removed the file after we opened it: try again.
        if _is_there(descriptor, file) or not tries_left:
            break
        os.close(descriptor)
    with contextlib.suppress(OSError):  # a full disk does not matter: the text is only for messages
        os.ftruncate(descriptor, 0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        os.write(
            descriptor, f"process {os.getpid()} on {socket.gethostname()} since {since}".encode()
        )
    return descriptor


def _is_there(descriptor: int, file: Path) -> bool:
    """True if the open file is still the one with this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False
