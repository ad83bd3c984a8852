"""Reading and writing of ``.pt`` files, which are pickles: nothing in one is trusted.

Such a file is a zip archive of a pickle and of the tensors' bytes. Three locks stand before what it
says: the archive may hold nothing that is compressed, larger than the file, or other than its
checksum says; the pickle may name nothing but what tensors are made of, which is found out by
reading its opcodes, before anything in it runs; and PyTorch reads it with ``weights_only=True``.
The second is there because PyTorch's own list has ``bytearray`` on it, with which a file of a
hundred bytes asks for any amount of memory. Tensors are mapped, so memory grows with what is used
of them.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from trajmatch.errors import UserError

#: The pickle alone, without the tensors: ten ResNet18 of a hundred epochs take 6 MB.
_MOST_PICKLE_BYTES = 16 * 2**20

_NAMES = frozenset(
    {
        "collections OrderedDict",
        "torch._utils _rebuild_parameter",
        "torch._utils _rebuild_tensor_v2",
        *(f"torch {kind}Storage" for kind in ("Double", "Float", "Half", "BFloat16")),
        *(f"torch {kind}Storage" for kind in ("Long", "Int", "Short", "Char", "Byte", "Bool")),
    }
)
#: Other ways to name something; ``torch.save`` has used none of them.
_FORBIDDEN = frozenset({"STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"})


def load(path: Path) -> Any:
    """Reads a file that ``torch.save`` wrote, if it holds nothing but tensors, lists and numbers.

    Args:
        path: The file.

    Returns:
        Its content; tensors are mapped from the file.

    Raises:
        UserError: The file cannot be read, is damaged, is of the form that PyTorch wrote before
            release 1.6, or holds something else.
    """
    _check_pickle(path, _read_pickle(path))
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged pickle can make the reader raise anything
        raise UserError(f"{path} is damaged: {_first_line(error)}") from error


def save(path: Path, content: Any) -> None:
    """Writes a file that ``torch.load(path, weights_only=True)`` reads.

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
        raise UserError(f"cannot write {path}: {_first_line(error)}") from error


def _read_pickle(path: Path) -> bytes:
    """The pickle in the archive, after a look at the sizes that the archive claims."""
    try:
        with zipfile.ZipFile(path) as archive:
            entry = _pickle_of(path, archive.infolist())
            damaged = archive.testzip()
            if damaged is not None:
                raise UserError(f"{path} is damaged: {damaged!r} does not fit its checksum")
            return archive.read(entry)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except UserError:
        raise
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{path} is cut off, damaged, or not a file that torch.save wrote since release 1.6 "
            f"({_first_line(error)}); an older one is renewed by torch.save(torch.load(FILE), FILE)"
        ) from error


def _pickle_of(path: Path, entries: list[zipfile.ZipInfo]) -> zipfile.ZipInfo:
    """The entry with the pickle, if nothing in the archive grows when it is read."""
    size = path.stat().st_size
    packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise UserError(f"{path} holds {packed[0]!r} compressed, but torch.save compresses nothing")
    if sum(entry.file_size for entry in entries) > size:
        raise UserError(f"{path} is damaged: it claims to hold more than its {size} bytes")
    pickles = [entry for entry in entries if entry.filename.split("/")[1:] == ["data.pkl"]]
    if len(pickles) != 1:
        raise UserError(f"{path} is a zip archive, but not one that torch.save wrote")
    if pickles[0].file_size > _MOST_PICKLE_BYTES:
        raise UserError(
            f"{path} has a pickle of {pickles[0].file_size} bytes beside its tensors, but at most "
            f"{_MOST_PICKLE_BYTES} are read; save fewer experts to one file"
        )
    return pickles[0]


def _check_pickle(path: Path, content: bytes) -> None:
    """Reads the opcodes of a pickle, and runs none, for what it names."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of a name with a backslash, which none of ours has
            named = {
                argument if opcode.name == "GLOBAL" else opcode.name
                for opcode, argument, _ in pickletools.genops(io.BytesIO(content))
                if opcode.name == "GLOBAL" or opcode.name in _FORBIDDEN
            }
    except (ValueError, IndexError, pickle.UnpicklingError, Warning) as error:
        raise UserError(f"{path} is damaged: {_first_line(error)}") from error
    strange = sorted(str(name).replace(" ", ".") for name in named - _NAMES)
    if strange:
        raise UserError(
            f"{path} holds {strange[0]}, but only tensors, lists and numbers are read: a pickle "
            "that names anything else can run a program; ask its author for plain tensors"
        )


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
