"""Reading and writing files so that what is on disk is always whole.

Every write goes to a temporary name in the same folder, is flushed to the disk and then renamed, so
that a reader finds the old content or the new one and never a part. Every failure is a
:class:`~trajmatch.errors.UserError` that names the path. Tensors are kept as safetensors, with one
JSON text as metadata, which has a checksum of the whole; nothing here reads a pickle.

What is read may be damaged or made to do harm: JSON is bounded, and the safetensors library
compares the sizes that a header claims with the file's before it allocates anything of that size.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from trajmatch.errors import UserError, as_user_error

if TYPE_CHECKING:
    from safetensors import safe_open
    from torch import Tensor

PathLike = str | os.PathLike[str]

# All metadata is one JSON text under this key: safetensors keeps several keys in no fixed order,
# which would make the bytes of two equal files differ. It is also how a file of ours is told from
# others.
METADATA_KEY = "trajmatch"
#: Reserved in all metadata: SHA-256 of the tensors, and of the other metadata. Older files have
#: none.
CHECKSUM = "checksum"

#: Bytes of a JSON text at most: as Python objects it takes 30 times as much memory. The names of
#: 20,000 classes are half of that.
MOST_JSON = 2**21

_LEFTOVER = re.compile(r"\.trajmatch-[0-9a-f]{16}\.tmp")
#: Age in seconds from which an unfinished file belongs to a writer that was killed.
_LEFTOVER_AGE = 3600

#: Errors of a disk that fails or is full. Others mean that a file system lacks an operation.
_DISK_ERRORS = (errno.EIO, errno.ENOSPC, errno.EDQUOT)


def write_bytes(path: PathLike, data: bytes) -> None:
    """Write a file, or leave what was there.

    Args:
        path: The file. Its folder must exist.
        data: The content.

    Raises:
        UserError: It cannot be written.
    """
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"cannot write {path}: it is a device or a pipe; choose a file")
    temporary = temporary_beside(path)
    try:
        with as_user_error(f"cannot write {path}: ", OSError):
            temporary.write_bytes(data)
            flush(temporary)
            os.replace(temporary, path)
            flush(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: PathLike, text: str) -> None:
    """Write a text in UTF-8, or leave what was there; see :func:`write_bytes`."""
    write_bytes(path, text.encode())


def write_json(path: PathLike, obj: Any) -> None:
    """Write an object as JSON with sorted keys, so that equal objects give equal bytes.

    Args:
        path: The file. Its folder must exist.
        obj: What JSON can hold; NaN and infinity are refused, since JSON has no word for them.

    Raises:
        UserError: It cannot be written, or is too large to be read again.
    """
    write_text(path, _to_json(path, obj, indent=2) + "\n")


def read_json(path: PathLike) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        UserError: The file is missing, cannot be read, is too large, or does not hold a JSON
            object.
    """
    with as_user_error(f"cannot read {path}: ", OSError), Path(path).open("rb") as file:
        return _from_json(path, file.read(MOST_JSON + 1))


def save_tensors(
    path: PathLike,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
    *,
    allow_nonfinite: bool = False,
) -> None:
    """Write named tensors and a description of them. Equal content gives equal bytes.

    Args:
        path: The file. Its folder must exist.
        tensors: What to write, of any shape, dtype and device.
        metadata: What JSON can hold, without an entry :data:`CHECKSUM`.
        allow_nonfinite: True to write NaN and infinity too.

    Raises:
        UserError: A tensor holds NaN or infinity, or the file cannot be written.
    """
    from safetensors.torch import save

    if not allow_nonfinite:
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise UserError(
                    f"cannot write {path}: tensor {name!r} holds values that are not finite"
                )
    separate = _separate(tensors)
    content = json.loads(_to_json(path, metadata))  # as a reader will have it
    # Half, because the header has this text as a string, with a backslash before each quote.
    checksum = {"metadata": json_checksum(content), "tensors": _checksum(separate)}
    described = {**content, CHECKSUM: checksum}
    text = _to_json(path, described, most=MOST_JSON // 2)
    write_bytes(path, save(separate, metadata={METADATA_KEY: text}))


def load_tensors(path: PathLike) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read all of a file that :func:`save_tensors` wrote, and check it.

    Args:
        path: The file.

    Returns:
        The tensors, on the CPU, and the metadata.

    Raises:
        UserError: The file is missing, cut off, was not written by trajmatch, or does not fit its
            checksum.
    """
    with open_tensors(path) as handle:
        metadata, checksum = _metadata(path, handle)
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    if checksum is not None and checksum["tensors"] != _checksum(tensors):
        raise UserError(f"{path} is damaged: its content does not fit its checksum")
    return tensors, metadata


def read_metadata(path: PathLike) -> dict[str, Any]:
    """Read the metadata of a file that :func:`save_tensors` wrote, and no tensor.

    Args:
        path: The file.

    Returns:
        The metadata.

    Raises:
        UserError: The file is missing, cut off, or was not written by trajmatch.
    """
    with open_tensors(path) as handle:
        return _metadata(path, handle)[0]


def has_checksum(path: PathLike) -> bool:
    """True if a file of :func:`save_tensors` has a checksum; those of early releases have none.

    Args:
        path: The file.

    Raises:
        UserError: The file is missing, cut off, or was not written by trajmatch.
    """
    with open_tensors(path) as handle:
        return _metadata(path, handle)[1] is not None


def json_checksum(content: Mapping[str, Any]) -> str:
    """SHA-256 of what JSON can hold, whatever the order of its keys, in hexadecimal."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@contextlib.contextmanager
def open_tensors(path: PathLike) -> Iterator[safe_open]:
    """Map a file that :func:`save_tensors` wrote, to read only parts of it.

    Args:
        path: The file.

    Yields:
        The open file of the safetensors library: ``get_tensor(name)``, and
        ``get_slice(name)[first:last]``, which touches only those rows.

    Raises:
        UserError: The file is missing, cut off, or was not written by trajmatch.
    """
    from safetensors import SafetensorError, safe_open

    # The library's own words leave out the cause.
    with as_user_error(f"cannot read {path}: ", OSError), Path(path).open("rb"):
        pass
    damaged = f"{path} is damaged, cut off or not a safetensors file: "
    # OSError: a pipe. TypeError: a size beyond 64 bits beside a 0.
    with (
        as_user_error(damaged, OSError, SafetensorError, TypeError),
        safe_open(path, framework="pt", device="cpu") as handle,
    ):
        yield handle


def beside(path: PathLike, ending: str) -> Path:
    """Name the file beside an artifact that has its name and another ending.

    Args:
        path: The artifact, whose name may end in ``.safetensors``.
        ending: Ending of the other file, e.g. ``".jsonl"``.
    """
    path = Path(path)
    return path.with_name(path.name.removesuffix(".safetensors") + ending)


def check_writable(folder: PathLike) -> None:
    """Make a folder, with its parents, and make sure that files can be written in it.

    Args:
        folder: The folder. It may exist.

    Raises:
        UserError: It cannot be made, or nothing can be written in it.
    """
    probe = temporary_beside(Path(folder) / "file")
    refused = f"cannot write in the folder {folder}: "
    with as_user_error(refused, OSError, advice="; choose another"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        probe.mkdir()
        probe.rmdir()


def remove_leftovers(folder: PathLike) -> None:
    """Remove the unfinished files and folders of writers that were killed an hour ago or earlier.

    Args:
        folder: Where they were writing.
    """
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            if _LEFTOVER.fullmatch(entry.name) and not entry.is_symlink():
                within = os.scandir(entry) if entry.is_dir() else ()
                newest = max(each.stat().st_mtime for each in (entry, *within))
                if time.time() - newest > _LEFTOVER_AGE:
                    remove = shutil.rmtree if entry.is_dir() else os.unlink
                    remove(entry.path)


def temporary_beside(path: Path) -> Path:
    """A new hidden name in the folder of a path; :func:`remove_leftovers` knows it."""
    return path.with_name(f".trajmatch-{secrets.token_hex(8)}.tmp")


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
    temporary = temporary_beside(folder)
    try:
        with as_user_error(f"cannot write {folder}: ", OSError):
            temporary.mkdir(parents=True)
            yield temporary
            for path in (*temporary.rglob("*"), temporary):
                flush(path)
            os.replace(temporary, folder)
            flush(folder.parent)
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


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk.

    A power cut can lose a new name that is not. Some file systems (shares of virtual machines, SMB,
    FUSE) cannot flush a folder; the names are then as safe as they get.

    Args:
        path: The file or folder.

    Raises:
        OSError: The disk fails or is full, or a file cannot be flushed.
    """
    folder = path.is_dir()
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if not folder or error.errno in _DISK_ERRORS:
            raise


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors that share no memory, as safetensors wants them."""
    separate: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        if plain.untyped_storage().data_ptr() in storages:
            plain = plain.clone()
        storages.add(plain.untyped_storage().data_ptr())
        separate[name] = plain
    return separate


def _metadata(path: PathLike, handle: safe_open) -> tuple[dict[str, Any], dict[str, str] | None]:
    """The metadata, compared with its checksum, and the checksums, if there are any."""
    text = (handle.metadata() or {}).get(METADATA_KEY)
    if text is None:
        raise UserError(f"{path} is a safetensors file, but not one that trajmatch wrote")
    metadata = _from_json(path, text.encode())
    if CHECKSUM not in metadata:
        return metadata, None
    checksum = metadata.pop(CHECKSUM)
    complete = isinstance(checksum, dict) and checksum.keys() == {"metadata", "tensors"}
    if not complete or checksum["metadata"] != json_checksum(metadata):
        raise UserError(f"{path} is damaged: its description does not fit its checksum")
    return metadata, checksum


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json_checksum({name: [str(tensor.dtype), list(tensor.shape)]}).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _to_json(path: PathLike, obj: Any, indent: int | None = None, most: int = MOST_JSON) -> str:
    with as_user_error(f"cannot write {path}: "):  # NaN, or a name that is not UTF-8
        text = json.dumps(obj, sort_keys=True, indent=indent, allow_nan=False, ensure_ascii=False)
        size = len(text.encode())
    if size > most:
        raise UserError(
            f"cannot write {path}: its description would have more than {most} bytes, and could "
            "not be read again"
        )
    return text


def _from_json(path: PathLike, raw: bytes) -> dict[str, Any]:
    if len(raw) > MOST_JSON:
        raise UserError(f"{path} is no description: it has more than {MOST_JSON} bytes")
    cut_off = f"{path} is cut off or does not hold a JSON object: "
    with as_user_error(cut_off, ValueError, RecursionError):
        return msgspec.json.decode(raw, type=dict[str, Any])
