"""Safe reading of untrusted ``.pt`` files (zip archives of a pickle and tensors), and writing."""

import zipfile
from pathlib import Path
from typing import Any

import torch

from trajmatch.errors import UserError, as_user_error


def load(path: Path) -> Any:
    """Load a file written by ``torch.save`` without running code; tensors are memory-mapped.

    Raises UserError if the file is unreadable, damaged or written by PyTorch before 1.6, or if it
    holds a bytearray or anything that ``weights_only`` refuses.
    """
    try:
        with as_user_error(f"cannot read {path}: ", OSError), zipfile.ZipFile(path) as archive:
            entries, size = archive.infolist(), path.stat().st_size
            # torch.save does not compress, so content larger than the file marks a zip bomb.
            if sum(entry.file_size for entry in entries) > size:
                raise UserError(f"{path} is damaged: it claims to hold more than its {size} bytes")
            # Memory-mapped tensors are read without a check of their checksums.
            if damaged := archive.testzip():
                raise UserError(f"{path} is damaged: {damaged!r} does not match its checksum")
            pickles = [each for each in entries if each.filename.endswith("/data.pkl")]
            # Of the calls that weights_only allows, only bytearray(n) can fill the memory.
            if any(b"bytearray" in archive.read(each) for each in pickles):
                raise UserError(
                    f"{path} holds a bytearray; only tensors, lists and numbers are accepted"
                )
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UserError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(
            f"{path} is truncated, damaged, written by PyTorch before 1.6 (re-save it with "
            "torch.save(torch.load(FILE), FILE)), or holds something other than tensors, lists "
            "and numbers; other pickles are refused because they can run code"
        ) from error


def save(path: Path, content: Any) -> None:
    """Write tensors, numbers and texts, in lists and dictionaries, with ``torch.save``."""
    try:
        with path.open("wb") as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:
        raise UserError(f"cannot write {path}: {str(error).splitlines()[0]}") from error
