"""Reading and writing files so that what is on disk is always whole.

Every write goes to a temporary name in the same folder, is flushed to the disk and then renamed, so
that a reader finds the old content or the new one and never a part. Every failure is a
:class:`~trajmatch.errors.UserError` that names the path. Tensors are kept as safetensors, with one
JSON text as metadata; nothing here reads a pickle.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import tempfile
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
        UserError: It cannot be written.
    """
    write_text(path, _to_json(path, obj, indent=2) + "\n")


def read_json(path: PathLike) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        UserError: The file is missing, cannot be read, or does not hold a JSON object.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a JSON file: {error}") from error
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
        metadata: What JSON can hold.
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
    text = _to_json(path, metadata)
    with _replacing(Path(path)) as temporary:
        try:
            save_file(_separate(tensors), temporary, metadata={METADATA_KEY: text})
        except SafetensorError as error:
            raise UserError(f"cannot write {path}: {error}") from error


def load_tensors(path: PathLike) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads all of a file that :func:`save_tensors` wrote.

    Args:
        path: The file.

    Returns:
        The tensors, on the CPU, and the metadata.

    Raises:
        UserError: The file is missing, cut off, or was not written by trajmatch.
    """
    with open_tensors(path) as handle:
        metadata = _from_json(path, handle.metadata()[METADATA_KEY])
        return {name: handle.get_tensor(name) for name in handle.keys()}, metadata  # noqa: SIM118


def read_metadata(path: PathLike) -> dict[str, Any]:
    """Reads the metadata of a file that :func:`save_tensors` wrote, and no tensor.

    Args:
        path: The file.

    Returns:
        The metadata.

    Raises:
        UserError: The file is missing, cut off, or was not written by trajmatch.
    """
    with open_tensors(path) as handle:
        return _from_json(path, handle.metadata()[METADATA_KEY])


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

    _check_header(Path(path))
    try:
        opened = safe_open(path, framework="pt", device="cpu")
    except SafetensorError as error:
        raise UserError(f"{path} is damaged or not a safetensors file: {error}") from error
    with opened as handle:
        if METADATA_KEY not in (handle.metadata() or {}):
            raise UserError(f"{path} is a safetensors file, but not one that trajmatch wrote")
        yield handle


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
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"cannot write in the folder {folder}: {_cause(error)}; choose another"
        ) from error


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary path to write to, and renames it to ``path`` when all went well."""
    temporary = path.with_name(f".trajmatch-{secrets.token_hex(8)}.tmp")
    try:
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors puts a file of its own there that nobody else may read
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)  # else a power cut can lose the new name, which the folder holds
    except OSError as error:
        raise UserError(f"cannot write {path}: {_cause(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


def _check_header(path: Path) -> None:
    """Compares the header's claimed length with the file, before that much is allocated."""
    try:
        with path.open("rb") as file:
            claimed = int.from_bytes(file.read(8), "little")
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        _fail_to_read(path, error)
    if size < 8 or claimed > size - 8:
        raise UserError(f"{path} is cut off or not a safetensors file ({size} bytes long)")


def _to_json(path: PathLike, obj: Any, indent: int | None = None) -> str:
    try:
        return json.dumps(obj, sort_keys=True, indent=indent, allow_nan=False, ensure_ascii=False)
    except ValueError as error:
        raise UserError(f"cannot write {path}: {error}") from error


def _from_json(path: PathLike, text: str) -> dict[str, Any]:
    try:
        content = json.loads(text, parse_constant=_refuse_constant)
    except ValueError as error:
        raise UserError(f"{path} is cut off or does not hold valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} should hold a JSON object, but holds a {type(content).__name__}")
    return content


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _fail_to_read(path: PathLike, error: OSError) -> NoReturn:
    raise UserError(f"cannot read {path}: {_cause(error)}") from error


def _cause(error: OSError) -> str:
    return error.strerror or str(error)
