"""File locks that keep two processes from writing the same file or folder."""

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from trajmatch import files
from trajmatch.errors import UserError, as_user_error, warn

#: Attempts to lock a file that the previous holder may remove. Only a faulty file system
#: needs all attempts.
_TRIES = 100

_held: set[int] = set()


@contextlib.contextmanager
def locked(path: Path, *, inside: bool = False) -> Iterator[None]:
    """Hold the lock of a file or folder while this process writes it.

    The lock is an ``flock`` on a hidden file. The system frees the lock when this process and its
    :mod:`~trajmatch.children` have ended, so the lock file of a killed process locks nothing. A
    file system without locks only causes a warning.

    Args:
        path: The file or folder.
        inside: True to put the lock file into the folder ``path`` (made if missing) instead of next
            to it, so that the parent need not be writable.

    Raises:
        UserError: Another process, named in the message, holds the lock; or the lock file cannot be
            written.
    """
    whole = path.absolute()  # the path "." has no name
    file = whole / ".lock" if inside else whole.with_name(f".{whole.name}.lock")
    files.check_writable(file.parent)
    if (descriptor := _acquire(file, path)) is None:
        yield
        return
    _held.add(descriptor)
    try:
        yield
    finally:
        _held.remove(descriptor)
        with contextlib.suppress(OSError):
            # Remove the file before the lock is freed, while no one else can lock it.
            if _is_there(descriptor, file):
                file.unlink()
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
                f"{file.parent} is on a file system without locks ({error.strerror}); make "
                f"sure that no other process writes {path}"
            )
            return None
        # If the previous holder removed the file after we opened it, the lock protects nothing.
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
    """Return True if the name ``file`` still belongs to the open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False
