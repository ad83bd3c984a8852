"""Reading and writing of ``.pt`` files, which are pickles: nothing in one is trusted.

Such a file is a zip archive of a pickle and of the tensors' bytes. PyTorch reads it with
``weights_only=True``, which runs nothing, after a check that the archive does not grow when it is
read. Tensors are mapped, so memory grows with the parts of them that are used.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

from trajmatch.errors import UserError


def load(path: Path) -> Any:
    """Read a file that ``torch.save`` wrote, if it holds nothing but tensors, lists and numbers.

    Args:
        path: The file.

    Returns:
        Its content; tensors are mapped from the file.

    Raises:
        UserError: The file cannot be read, is damaged, is of the form that PyTorch wrote before
            release 1.6, or holds something else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries, size = archive.infolist(), path.stat().st_size
            if sum(entry.file_size for entry in entries) > size:
                raise UserError(f"{path} is damaged: it claims to hold more than its {size} bytes")
            if damaged := archive.testzip():
                raise UserError(f"{path} is damaged: {damaged!r} does not fit its checksum")
            pickles = [each for each in entries if each.filename.endswith("/data.pkl")]
            # The one function that PyTorch lets a pickle call with any amount of memory.
            if any(b"bytearray" in archive.read(each) for each in pickles):
                raise UserError(f"{path} holds a bytearray; only tensors, lists, numbers are read")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # a damaged pickle can make the reader raise anything
        raise UserError(
            f"{path} is cut off, damaged, of a release of PyTorch before 1.6 (which torch.save("
            "torch.load(FILE), FILE) renews), or holds anything but tensors, lists and numbers, "
            "which alone are read: other pickles can run a program"
        ) from error


def save(path: Path, content: Any) -> None:
    """Write a file that ``torch.load(path, weights_only=True)`` reads.

    Args:
        path: The file.
        content: Tensors, numbers and texts, in lists and dictionaries.

    Raises:
        UserError: It cannot be written.
    """
    try:
        with path.open("wb") as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:
        raise UserError(f"cannot write {path}: {str(error).splitlines()[0]}") from error
