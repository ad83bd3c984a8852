"""The manifest of a store of experts: ``store.json``, checked when it is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from trajmatch import files
from trajmatch.errors import UserError

FORMAT = "trajmatch-experts"
VERSION = 1
NAME = "store.json"

#: Bounds of what a store can have, so that a damaged number costs no memory and no time.
MOST_EXPERTS = MOST_EPOCHS = 100_000
Epochs = Annotated[int, Meta(ge=1, le=MOST_EPOCHS)]


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _has(**parts: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Whether a value is an object with such entries, perhaps among others."""
    return lambda value: (
        isinstance(value, dict) and all(holds(value.get(name)) for name, holds in parts.items())
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_list_of(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(holds, value))


def _is_fraction(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1


def _are_epochs(value: Any) -> bool:
    return (
        _is_list_of(_is_count)(value)
        and len(value) > 0
        and value == sorted(set(value))
        and value[-1] <= MOST_EPOCHS
    )


#: What every manifest has, and when it is sound; :class:`trajmatch.experts.Store` says what it is.
_FIELDS: dict[str, Callable[[Any], bool]] = {
    "data": lambda value: value is None or isinstance(value, str),
    "dataset": _has(
        name=_is_text,
        fingerprint=_is_text,
        class_names=_is_list_of(_is_text),
        shape=_is_list_of(_is_count),
    ),
    "holdout": _has(
        fraction=_is_fraction, seed=lambda value: type(value) is int, training_fingerprint=_is_text
    ),
    "preprocessing": _is_object,
    "network": _is_object,
    "recipe": _is_object,
    # Nobody knows that of a converted store, and a merged one has several.
    "seed": lambda value: value is None or type(value) is int,
    "num_experts": lambda value: _is_count(value) and 1 <= value <= MOST_EXPERTS,
    "dtype": lambda value: value in ("float32", "bfloat16"),
    "snapshots": _are_epochs,
}
_are_sources = _is_list_of(_has(seed=lambda value: type(value) is int, expert=_is_count))


def read(folder: Path) -> dict[str, Any]:
    """Reads the manifest of a store.

    Args:
        folder: The store.

    Returns:
        The manifest, without its checksum.

    Raises:
        UserError: It is missing, damaged or of another version.
    """
    path = folder / NAME
    manifest = files.read_json(path)
    if manifest.get("format") != FORMAT or manifest.get("version") != VERSION:
        raise UserError(
            f"{path} has format {manifest.get('format')!r} version {manifest.get('version')!r}, "
            f"but this release reads {FORMAT!r} version {VERSION}"
        )
    found = manifest.pop(files.CHECKSUM, None)
    lacking = sorted(_FIELDS.keys() - manifest.keys())
    if lacking:
        raise UserError(f"{path} is damaged: it lacks {', '.join(lacking)}")
    for field, holds in _FIELDS.items():
        if not holds(manifest[field]):
            raise UserError(f"{path} is damaged: its {field} is {manifest[field]!r:.100}")
    epochs = manifest.get("trained_epochs", 1)
    if not (type(epochs) is int and epochs >= 1):
        raise UserError(f"{path} is damaged: its trained_epochs is {epochs!r:.100}")
    if "sources" in manifest:
        sources = manifest["sources"]
        if not _are_sources(sources) or len(sources) != manifest["num_experts"]:
            raise UserError(f"{path} is damaged: its sources are {sources!r:.100}")
    if found is not None and found != files.json_checksum(manifest):
        raise UserError(
            f"{path} is damaged: its content does not fit its checksum; if you changed it by hand, "
            f"remove its entry {files.CHECKSUM!r} as well"
        )
    return manifest


def write(folder: Path, manifest: dict[str, Any]) -> None:
    """Writes the manifest of a store, with a checksum.

    Args:
        folder: The store.
        manifest: What :func:`read` gives.

    Raises:
        UserError: It cannot be written.
    """
    checksum = {files.CHECKSUM: files.json_checksum(manifest)}
    files.write_json(folder / NAME, {**manifest, **checksum})
