"""Reading and writing files so that what is on disk is always whole.

Every write goes to a temporary name in the same folder, is flushed to the disk and then renamed, so
that a reader finds the old content or the new one and never a part. Every failure is a
:class:`~trajmatch.errors.UserError` that names the path. Tensors are kept as safetensors, with one
JSON text as metadata, which has a checksum of the whole; nothing here reads a pickle.

What is read may be damaged or made to do harm: sizes are bounded, and a header is compared with the
file's size before anything of that size is allocated.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from trajmatch.errors import UserError

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

#: Bytes of a JSON text, or of a header of tensors, at most: as Python objects they take 30 times as
#: much memory. The names of 20,000 classes are half of that.
MOST_JSON = 2**21

#: Bytes of a number of each dtype that is read.
_DTYPES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}

_LEFTOVER = re.compile(r"\.trajmatch-[0-9a-f]{16}\.tmp")
#: Age in seconds from which an unfinished file belongs to a writer that was killed.
_LEFTOVER_AGE = 3600

#: Errors of a disk that fails or is full. Others mean that a file system lacks an operation.
_DISK_ERRORS = (errno.EIO, errno.ENOSPC, errno.EDQUOT)


def write_bytes(path: PathLike, data: bytes) -> None:
    """Writes a file, or leaves what was there.

    Args:
        path: The file. Its folder must exist.
        data: The content.

    Raises:
        UserError: It cannot be written.
    """
    with _replacing(Path(path)) as temporary:
        temporary.write_bytes(data)


def write_text(path: PathLike, text: str) -> None:
    """Writes a text in UTF-8, or leaves what was there; see :func:`write_bytes`."""
    write_bytes(path, text.encode())


def write_json(path: PathLike, obj: Any) -> None:
    """Writes an object as JSON with sorted keys, so that equal objects give equal bytes.

    Args:
        path: The file. Its folder must exist.
        obj: What JSON can hold; NaN and infinity are refused, since JSON has no word for them.

    Raises:
        UserError: It cannot be written, or is too large to be read again.
    """
    write_text(path, _to_json(path, obj, indent=2) + "\n")


def read_json(path: PathLike) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        UserError: The file is missing, cannot be read, is too large, or does not hold a JSON
            object.
    """
    try:
        with Path(path).open("rb") as file:
            raw = file.read(MOST_JSON + 1)
        if len(raw) > MOST_JSON:
            raise UserError(f"{path} is no description: it has more than {MOST_JSON} bytes")
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not a JSON file: it is not UTF-8 (byte {error.start})"
        ) from error
    except OSError as error:
        _fail_to_read(path, error)
    return _from_json(path, text)


def save_tensors(
    path: PathLike,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
    *,
    allow_nonfinite: bool = False,
) -> None:
    """Writes named tensors and a description of them. Equal content gives equal bytes.

    Args:
        path: The file. Its folder must exist.
        tensors: What to write, of any shape, dtype and device.
        metadata: What JSON can hold, without an entry :data:`CHECKSUM`.
        allow_nonfinite: Whether floating-point tensors may hold NaN or infinity.

    Raises:
        UserError: A tensor holds NaN or infinity, or the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    if not allow_nonfinite:
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise UserError(
                    f"cannot write {path}: tensor {name!r} holds values that are not finite"
                )
    separate = _separate(tensors)
    content = _from_json(path, _to_json(path, metadata))  # as a reader will have it
    # Half, because the header has this text as a string, with a backslash before each quote.
    checksum = {"metadata": json_checksum(content), "tensors": _checksum(separate)}
    described = {**content, CHECKSUM: checksum}
    text = _to_json(path, described, most=MOST_JSON // 2)
    with _replacing(Path(path)) as temporary:
        try:
            save_file(separate, temporary, metadata={METADATA_KEY: text})
        except SafetensorError as error:
            raise UserError(f"cannot write {path}: {error}") from error


def load_tensors(path: PathLike) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads all of a file that :func:`save_tensors` wrote, and checks it.

    Args:
        path: The file.

    Returns:
        The tensors, on the CPU, and the metadata.

    Raises:
        UserError: The file is missing, cut off, was not written by trajmatch, or does not fit its
            checksum.
    """
    metadata, checksum = _metadata(path)
    with open_tensors(path) as handle:
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    if checksum is not None and checksum["tensors"] != _checksum(tensors):
        raise UserError(f"{path} is damaged: its content does not fit its checksum")
    return tensors, metadata


def read_metadata(path: PathLike) -> dict[str, Any]:
    """Reads the metadata of a file that :func:`save_tensors` wrote, and no tensor.

    Args:
        path: The file.

    Returns:
        The metadata.

    Raises:
        UserError: The file is missing, cut off, or was not written by trajmatch.
    """
    return _metadata(path)[0]


def has_checksum(path: PathLike) -> bool:
    """Whether a file of :func:`save_tensors` has a checksum; those of early releases have none.

    Args:
        path: The file.

    Raises:
        UserError: The file is missing, cut off, or was not written by trajmatch.
    """
    return _metadata(path)[1] is not None


def json_checksum(content: Mapping[str, Any]) -> str:
    """SHA-256 of what JSON can hold, whatever the order of its keys, in hexadecimal."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@contextlib.contextmanager
def open_tensors(path: PathLike) -> Iterator[safe_open]:
    """Maps a file that :func:`save_tensors` wrote, to read only parts of it.

    Args:
        path: The file.

    Yields:
        The open file of the safetensors library: ``get_tensor(name)``, and
        ``get_slice(name)[first:last]``, which touches only those rows.

    Raises:
        UserError: The file is missing, cut off, or was not written by trajmatch.
    """
    from safetensors import SafetensorError, safe_open

    _read_header(Path(path))
    try:
        with safe_open(path, framework="pt", device="cpu") as handle:
            yield handle
    except SafetensorError as error:
        raise UserError(f"{path} is damaged or not a safetensors file: {error}") from error


def beside(path: PathLike, ending: str) -> Path:
    """The file beside an artifact that has its name and another ending.

    Args:
        path: The artifact, whose name may end in ``.safetensors``.
        ending: That of the other file, e.g. ``".jsonl"``.
    """
    path = Path(path)
    return path.with_name(path.name.removesuffix(".safetensors") + ending)


def check_writable(folder: PathLike) -> None:
    """Makes a folder, with its parents, and makes sure that files can be written in it.

    Args:
        folder: The folder. It may exist.

    Raises:
        UserError: It cannot be made, or nothing can be written in it.
    """
    probe = temporary_beside(Path(folder) / "file")
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise UserError(
            f"cannot write in the folder {folder}: {_cause(error)}; choose another"
        ) from error


def remove_leftovers(folder: PathLike) -> None:
    """Removes the unfinished files of writers that were killed an hour ago or earlier.

    Args:
        folder: Where they were writing.
    """
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            if _LEFTOVER.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                newest = max(each.stat().st_mtime for each in (entry, *os.scandir(entry)))
                if time.time() - newest > _LEFTOVER_AGE:
                    shutil.rmtree(entry, ignore_errors=True)


def temporary_beside(path: Path) -> Path:
    """New hidden name in the folder of a path; :func:`remove_leftovers` knows it."""
    return path.with_name(f".trajmatch-{secrets.token_hex(8)}.tmp")


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk.

    A power cut can lose a new name that is not. Some file systems (shares of virtual machines, SMB,
    FUSE) cannot flush a folder; the names are then as safe as they get.

    Args:
        path: The file or folder.

    Raises:
        OSError: The disk fails or is full, or a file cannot be flushed.
    """
    with optional() if path.is_dir() else contextlib.nullcontext():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def optional() -> Iterator[None]:
    """Ignore that a file system lacks an operation; errors of the disk itself pass."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_ERRORS:
            raise


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary path to write to, and renames it to ``path`` when all went well.

    It is in a folder of its own, where safetensors puts files of other names that a kill leaves.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"cannot write {path}: it is a device or a pipe; choose a file")
    folder = temporary_beside(path)
    temporary = folder / "content"
    try:
        folder.mkdir()
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        yield temporary
        with optional():
            temporary.chmod(mode)  # safetensors leaves a file that only its owner may read
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {_cause(error)}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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


def _metadata(path: PathLike) -> tuple[dict[str, Any], dict[str, str] | None]:
    """The metadata, compared with its checksum, and the checksums, if there are any."""
    metadata = _from_json(path, _read_header(Path(path)))
    if CHECKSUM not in metadata:
        return metadata, None
    checksum = metadata.pop(CHECKSUM)
    wanted = json_checksum(metadata)
    if (
        not isinstance(checksum, dict)
        or checksum.keys() != {"metadata", "tensors"}
        or checksum["metadata"] != wanted
    ):
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


def _read_header(path: Path) -> str:
    """The metadata of a file of tensors, after checking all that its header claims."""
    try:
        with path.open("rb") as file:
            claimed = int.from_bytes(file.read(8), "little")
            size = os.fstat(file.fileno()).st_size
            if size < 8 or claimed > size - 8:
                raise UserError(f"{path} is cut off or not a safetensors file ({size} bytes long)")
            if claimed > MOST_JSON:
                raise UserError(
                    f"{path} is damaged or not a safetensors file: its header has {claimed} bytes"
                )
            raw = file.read(claimed)
    except OSError as error:
        _fail_to_read(path, error)
    try:
        header = _from_json(path, raw.decode())
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is damaged or not a safetensors file: its header is not UTF-8"
        ) from error
    metadata = header.pop("__metadata__", None)
    for name, entry in header.items():
        if not _is_sound(entry, size - 8 - claimed):
            raise UserError(
                f"{path} is damaged or not a safetensors file: its header says {entry!r:.200} of "
                f"tensor {name!r:.200}"
            )
    text = metadata.get(METADATA_KEY) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise UserError(f"{path} is a safetensors file, but not one that trajmatch wrote")
    return text


def _is_sound(entry: Any, size: int) -> bool:
    """Whether a header's entry of a tensor fits itself, and into ``size`` bytes of data."""
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
        return False
    shape, offsets = _sizes(entry.get("shape")), _sizes(entry.get("data_offsets"))
    if shape is None or offsets is None:
        return False
    if entry["dtype"] not in _DTYPES or len(shape) > 16 or len(offsets) != 2:
        return False
    begin, end = offsets
    # Sizes beside a 0 are bounded too: torch multiplies them.
    largest = math.prod(max(1, number) for number in shape)
    return (
        begin <= end <= size
        and end - begin == math.prod(shape) * _DTYPES[entry["dtype"]]
        and largest < 2**60
    )


def _sizes(numbers: Any) -> list[int] | None:
    """A list of sizes as it is; None for anything else."""
    if not isinstance(numbers, list):
        return None
    return numbers if all(type(each) is int and 0 <= each < 2**63 for each in numbers) else None


def _to_json(path: PathLike, obj: Any, indent: int | None = None, most: int = MOST_JSON) -> str:
    try:
        text = json.dumps(obj, sort_keys=True, indent=indent, allow_nan=False, ensure_ascii=False)
        size = len(text.encode())
    except ValueError as error:  # NaN, or a name that is not UTF-8
        raise UserError(f"cannot write {path}: {error}") from error
    if size > most:
        raise UserError(
            f"cannot write {path}: its description would have more than {most} bytes, and could "
            "not be read again"
        )
    return text


def _from_json(path: PathLike, text: str) -> dict[str, Any]:
    try:
        content = json.loads(
            text, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_bounded
        )
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise UserError(f"{path} is cut off or does not hold valid JSON: {why}") from error
    if not isinstance(content, dict):
        kinds = {list: "an array", str: "a string", int: "a number", float: "a number"}
        came = kinds.get(type(content)) or json.dumps(content)  # null, true or false
        raise UserError(f"{path} should hold a JSON object, but holds {came}")
    return content


def _bounded(digits: str) -> int:
    if len(digits) > 40:
        raise ValueError(f"{digits[:40]}... is too large a number")
    return int(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits} is too large a number")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _fail_to_read(path: PathLike, error: OSError) -> NoReturn:
    raise UserError(f"cannot read {path}: {_cause(error)}") from error


def _cause(error: OSError) -> str:
    return error.strerror or str(error)
