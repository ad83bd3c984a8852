"""Manifest of an expert store, ``store.json``, validated when it is read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from msgspec import Meta

from trajmatch import files
from trajmatch.errors import UserError
from trajmatch.schema import Count, Fraction, Int, PositiveInt, convert

FORMAT = "trajmatch-experts"
NAME = "store.json"

#: Upper bounds, because a damaged number could otherwise exhaust memory or time.
MOST_EXPERTS = MOST_EPOCHS = 100_000
Epochs = Annotated[int, Meta(ge=1, le=MOST_EPOCHS)]


class DatasetEntry(TypedDict):
    """Description of the whole data set; ``shape`` is ``[C, H, W]``."""

    name: str
    fingerprint: str
    class_names: list[str]
    shape: list[Count]


class HoldoutEntry(TypedDict):
    """Held-out part of the training images, and the fingerprint of the remaining images."""

    fraction: Fraction
    seed: Int
    training_fingerprint: str


class SourceEntry(TypedDict):
    """Seed and number that an expert was trained with."""

    seed: Int
    expert: Count


class WaypointsEntry(TypedDict):
    """Epochs of the waypoints of convexified experts, and sizes of the parameter tensors."""

    epochs: Annotated[list[Count], Meta(min_length=2)]
    layers: list[Count]


class Manifest(TypedDict):
    """Content of ``store.json``; see :class:`trajmatch.experts.Store` for each entry."""

    data: str | None
    dataset: DatasetEntry
    holdout: HoldoutEntry
    preprocessing: dict[str, Any]
    network: dict[str, Any]
    recipe: dict[str, Any]
    seed: Int | None  # None: unknown (converted store) or several (merged store)
    num_experts: Annotated[int, Meta(ge=1, le=MOST_EXPERTS)]
    dtype: Literal["float32", "bfloat16"]
    snapshots: Annotated[list[Annotated[int, Meta(ge=0, le=MOST_EPOCHS)]], Meta(min_length=1)]
    trained_epochs: NotRequired[PositiveInt]
    sources: NotRequired[list[SourceEntry]]
    waypoints: NotRequired[WaypointsEntry]


def complete(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest with ``format`` and ``version`` added."""
    return {**manifest, "format": FORMAT, "version": _version(manifest)}


def _version(manifest: Mapping[str, Any]) -> int:
    """Return 2 for convexified experts, which release 0.1 cannot read, and 1 for others."""
    return 2 if "waypoints" in manifest else 1


def read(folder: Path) -> dict[str, Any]:
    """Read and validate the manifest of a store folder; return it without its checksum."""
    path = folder / NAME
    manifest = files.read_json(path)
    version = _version(manifest)
    if manifest.get("format") != FORMAT or manifest.get("version") != version:
        raise UserError(
            f"{path} has format {manifest.get('format')!r} version {manifest.get('version')!r}, "
            f"but this release reads {FORMAT!r} version {version}"
        )
    found = manifest.pop(files.CHECKSUM, None)
    known = convert(manifest, Manifest, f"{path} is damaged")
    # msgspec checks each entry; the rest checks how entries fit together.
    epochs, sources = known["snapshots"], known.get("sources")
    if epochs != sorted(set(epochs)):
        raise UserError(f"{path} is damaged: its snapshots should ascend, but are {epochs!r:.100}")
    if sources is not None and len(sources) != known["num_experts"]:
        raise UserError(
            f"{path} is damaged: its sources should be one per expert, but are {sources!r:.100}"
        )
    if waypoints := known.get("waypoints"):
        ends = waypoints["epochs"]
        if ends != sorted(set(ends)) or not ends[0] <= epochs[0] <= epochs[-1] <= ends[-1]:
            raise UserError(
                f"{path} is damaged: its waypoints should ascend and enclose all snapshots, but "
                f"are {ends!r:.100}"
            )
    # A file without a checksum was written by an early release or edited by a user.
    if found is not None and found != files.json_checksum(manifest):
        raise UserError(
            f"{path} is damaged: its content does not match its checksum; if you changed it by "
            f"hand, remove its entry {files.CHECKSUM!r} as well"
        )
    return manifest


def write(folder: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest to a store folder, with a checksum."""
    files.write_json(folder / NAME, {**manifest, files.CHECKSUM: files.json_checksum(manifest)})
