"""Atomic file writes, and safetensors files with JSON metadata and a checksum.

A write goes to a temporary file in the same folder, is flushed (fsync) and then renamed. Failures
are :class:`~trajmatch.errors.UserError` with the path. Input may be damaged or hostile: the size of
JSON is limited, safetensors checks a header against the file size, and pickle is never used.
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

# All metadata is one JSON text under this key. safetensors writes several keys in no fixed order,
# so equal files could differ in bytes. The key also identifies files that trajmatch wrote.
METADATA_KEY = "trajmatch"
#: Reserved metadata key: SHA-256 of the tensors and of the other metadata. Missing in older files.
CHECKSUM = "checksum"

#: Maximum size of a JSON text in bytes. The parsed Python objects can take 30 times as much memory.
#: The names of 20,000 classes take half of the limit.
MOST_JSON = 2**21

#: Prefix of the name of a set of the zoo, where a command expects a file.
ZOO = "zoo:"

_LEFTOVER = re.compile(r"\.trajmatch-[0-9a-f]{16}\.tmp")
#: Age in seconds at which a temporary file counts as left over from a killed process.
_LEFTOVER_AGE = 3600

#: Values of errno for a failing or full disk; others mean that the file system lacks an operation.
_DISK_ERRORS = (errno.EIO, errno.ENOSPC, errno.EDQUOT)


def write_bytes(path: PathLike, data: bytes) -> None:
    """Write a file atomically; its folder must exist. Raises UserError if that fails."""
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"cannot write {path}: it is a device or a pipe; choose a file")
    temporary = temporary_beside(path)
    try:
        with as_user_error(f"cannot write {path}: ", OSError):
            temporary.write_bytes(data)
            move_into_place(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: PathLike, text: str) -> None:
    """Write a text in UTF-8 with :func:`write_bytes`."""
    write_bytes(path, text.encode())


def write_json(path: PathLike, obj: Any) -> None:
    """Write an object as JSON with sorted keys, so that equal objects give equal bytes.

    Raises UserError for NaN, infinity, or a text that is too large for :func:`read_json`.
    """
    write_text(path, _to_json(path, obj, indent=2) + "\n")


def read_json(path: PathLike) -> dict[str, Any]:
    """Read the JSON object in a file; UserError if the file is missing, too large or invalid."""
    with as_user_error(f"cannot read {path}: ", OSError), Path(path).open("rb") as file:
        return _from_json(path, file.read(MOST_JSON + 1))


def save_tensors(
    path: PathLike,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
    *,
    allow_nonfinite: bool = False,
) -> None:
    """Write named tensors and metadata atomically; equal content gives equal bytes.

    Tensors have any shape, dtype and device. The metadata are JSON values without the key
    :data:`CHECKSUM`. The folder must exist. Raises UserError if the file cannot be written, or for
    NaN or infinity in a tensor unless ``allow_nonfinite``.
    """
    from safetensors.torch import save

    separate: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not allow_nonfinite and tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(
                f"cannot write {path}: tensor {name!r} holds values that are not finite"
            )
        # safetensors requires contiguous CPU tensors that share no memory.
        plain = tensor.detach().cpu().contiguous()
        taken = {each.untyped_storage().data_ptr() for each in separate.values()}
        separate[name] = plain.clone() if plain.untyped_storage().data_ptr() in taken else plain
    content = json.loads(_to_json(path, metadata))  # checksum of what load_tensors will parse
    # Only half of the limit, because the header adds a backslash before each quote of this text.
    checksum = {"metadata": json_checksum(content), "tensors": tensor_checksum(separate)}
    text = _to_json(path, {**content, CHECKSUM: checksum}, most=MOST_JSON // 2)
    write_bytes(path, save(separate, metadata={METADATA_KEY: text}))


def load_tensors(path: PathLike) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors (on the CPU) and the metadata of a file of :func:`save_tensors`.

    Raises UserError if the file is missing, not from trajmatch, or does not match its checksum.
    """
    with open_tensors(path) as handle:
        metadata, checksum = _metadata(path, handle)
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    if checksum is not None and checksum["tensors"] != tensor_checksum(tensors):
        raise UserError(f"{path} is damaged: its content does not match its checksum")
    return tensors, metadata


def read_metadata(path: PathLike) -> dict[str, Any]:
    """Read the metadata, but not the tensors, of a file of :func:`save_tensors`."""
    with open_tensors(path) as handle:
        return _metadata(path, handle)[0]


def has_checksum(path: PathLike) -> bool:
    """Return True if a file of :func:`save_tensors` has a checksum; early releases wrote none."""
    with open_tensors(path) as handle:
        return _metadata(path, handle)[1] is not None


def json_checksum(content: Mapping[str, Any]) -> str:
    """Return the hexadecimal SHA-256 of a JSON object, independent of key order."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def tensor_checksum(tensors: Mapping[str, Tensor]) -> str:
    """Return the hexadecimal SHA-256 of named tensors, independent of their order."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu()
        digest.update(json_checksum({name: [str(tensor.dtype), list(tensor.shape)]}).encode())
        # Hash the bytes themselves, because NumPy has no bfloat16.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextlib.contextmanager
def open_tensors(path: PathLike) -> Iterator[safe_open]:
    """Memory-map a file of :func:`save_tensors` to read parts of it.

    Yields the safetensors handle: ``get_tensor(name)``, and ``get_slice(name)[first:last]``, which
    reads only those rows. Raises UserError if the file is missing or is not safetensors.
    """
    from safetensors import SafetensorError, safe_open

    # Open the file here first, because the error of safetensors lacks the cause.
    with as_user_error(f"cannot read {path}: ", OSError), Path(path).open("rb"):
        pass
    damaged = f"{path} is damaged, cut off or not a safetensors file: "
    # OSError: the path is a pipe. TypeError: a shape has a 0 and a size above 64 bits.
    with (
        as_user_error(damaged, OSError, SafetensorError, TypeError),
        safe_open(path, framework="pt", device="cpu") as handle,
    ):
        yield handle


def beside(path: PathLike, ending: str) -> Path:
    """Return the path of an artifact without ``.safetensors`` and with ``ending`` appended."""
    path = Path(path)
    return path.with_name(path.name.removesuffix(".safetensors") + ending)


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, with it removed from the names."""
    return {k.removeprefix(prefix): each for k, each in tensors.items() if k.startswith(prefix)}


def check_writable(folder: PathLike) -> None:
    """Make a folder and its parents; raise UserError if files cannot be written in it."""
    probe = temporary_beside(Path(folder) / "file")
    refused = f"cannot write in the folder {folder}: "
    with as_user_error(refused, OSError, advice="; choose another"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        probe.mkdir()
        probe.rmdir()


def remove_leftovers(folder: PathLike) -> None:
    """Remove temporary files and folders that are more than an hour old from a folder."""
    # Newer ones may belong to a running process. Entries may also vanish meanwhile (OSError).
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            if _LEFTOVER.fullmatch(entry.name) and not entry.is_symlink():
                within = Path(entry).rglob("*") if entry.is_dir() else ()
                newest = max(each.stat().st_mtime for each in (entry, *within))
                if time.time() - newest > _LEFTOVER_AGE:
                    remove = shutil.rmtree if entry.is_dir() else os.unlink
                    remove(entry.path)


def temporary_beside(path: Path) -> Path:
    """Return a new hidden path next to ``path`` that :func:`remove_leftovers` recognises."""
    return path.with_name(f".trajmatch-{secrets.token_hex(8)}.tmp")


def move_into_place(temporary: Path, path: Path) -> None:
    """Rename a complete file or folder on the same disk to ``path``; raises OSError."""
    # Flush before the rename: after a power cut, the name must not show partial content.
    for each in (*temporary.rglob("*"), temporary):
        flush(each)
    os.replace(temporary, path)
    flush(path.parent)


@contextlib.contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Make a folder from :func:`temporary_beside`; remove it at the end if it is still there."""
    folder = temporary_beside(path)
    try:
        folder.mkdir(parents=True)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill; rename it to ``folder`` if the block succeeds.

    Parent folders are made. Raises UserError if ``folder`` is not empty or cannot be written.
    """
    folder = folder.absolute()  # the path "." has no name
    check_new(folder)
    with as_user_error(f"cannot write {folder}: ", OSError), temporary_folder(folder) as temporary:
        yield temporary
        move_into_place(temporary, folder)


def check_new(path: Path) -> None:
    """Raise UserError if ``path`` exists, unless it is an empty folder."""
    with as_user_error(f"cannot write {path}: ", OSError):
        taken = path.exists() and (not path.is_dir() or any(path.iterdir()))
    if taken:
        raise UserError(f"{path} already exists; choose another --out")


def flush(path: Path) -> None:
    """Flush (fsync) a file, or the names in a folder, so that a power cut cannot lose them.

    Raises OSError if the disk fails or is full, or if a file cannot be flushed.
    """
    # Some file systems cannot flush a folder (shares of virtual machines, SMB, FUSE): ignore that.
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


def _metadata(path: PathLike, handle: safe_open) -> tuple[dict[str, Any], dict[str, str] | None]:
    """Return the verified metadata, and the checksums (None if an old file has none)."""
    if (text := (handle.metadata() or {}).get(METADATA_KEY)) is None:
        raise UserError(f"{path} is a safetensors file, but not one that trajmatch wrote")
    metadata = _from_json(path, text.encode())
    if CHECKSUM not in metadata:
        return metadata, None
    checksum = metadata.pop(CHECKSUM)
    complete = isinstance(checksum, dict) and checksum.keys() == {"metadata", "tensors"}
    if not complete or checksum["metadata"] != json_checksum(metadata):
        raise UserError(f"{path} is damaged: its description does not match its checksum")
    return metadata, checksum


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
        raise UserError(
            f"{path} is too large for a JSON file of trajmatch: more than {MOST_JSON} bytes"
        )
    cut_off = f"{path} is cut off or does not hold a JSON object: "
    with as_user_error(cut_off, ValueError, RecursionError):
        return msgspec.json.decode(raw, type=dict[str, Any])
