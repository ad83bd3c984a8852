"""Advisory locks on what commands write, so that two processes never write to one place."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from trajmatch import files
from trajmatch.errors import UserError, as_user_error

#: Openings of a lock file that its holder may remove meanwhile. More are a file system's fault.
_TRIES = 100

_held: set[int] = set()


@contextlib.contextmanager
def locked(path: Path, *, inside: bool = False) -> Iterator[None]:
    """Hold the lock of a file or folder while this process writes it.

    The lock is an ``flock`` on a hidden file, which is removed at the end. The system frees it when
    the last process that holds it ends, however that happens: this one and its
    :mod:`~trajmatch.children`. A file that a killed process left locks nothing. Where a file
    system has no locks, a warning says so and there is none.

    Args:
        path: The file or folder.
        inside: True to put the lock file into the folder ``path``, which is made if it is missing,
            rather than beside ``path``. The parent of ``path`` need not be writable then.

    Raises:
        UserError: Another process holds the lock (it is named), or the lock file cannot be written.
    """
    whole = path.absolute()  # the current folder has no name otherwise
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
                file.unlink()  # before it is free: nobody else can hold a file of this name
        os.close(descriptor)


def held() -> list[int]:
    """File descriptors of the locks that this process holds, for its children."""
    return sorted(_held)


def _acquire(file: Path, path: Path) -> int | None:
    """Return a descriptor of the locked file; None where the file system has no locks."""
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
            warnings.warn(
                f"{file.parent} is on a file system without locks ({error.strerror}); let no "
                f"second process write {path}",
                stacklevel=4,
            )
            return None
        if _is_there(descriptor, file) or not tries_left:
            break
        os.close(descriptor)
    with contextlib.suppress(OSError):  # a full disk; the text is for people only
        os.ftruncate(descriptor, 0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        os.write(
            descriptor, f"process {os.getpid()} on {socket.gethostname()} since {since}".encode()
        )
    return descriptor


def _is_there(descriptor: int, file: Path) -> bool:
    """True if an open file still has its name: the holder before may have removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False
