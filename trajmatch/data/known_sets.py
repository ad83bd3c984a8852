"""Data sets that are known by name, from ``known_sets.toml``, which explains the fields."""

from __future__ import annotations

from importlib import resources

import msgspec


class Binary(msgspec.Struct, frozen=True):
    """The official binary version of CIFAR."""

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    label_bytes: int


class KnownSet(msgspec.Struct, frozen=True, kw_only=True):
    """One table of the file."""

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    torchvision: str = ""
    files: tuple[str, ...] = ()
    more_files: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    binary: Binary | None = None
    subsets: dict[str, dict[str, str]] = {}


#: By name.
KNOWN_SETS = msgspec.toml.decode(
    resources.files("trajmatch.data").joinpath("known_sets.toml").read_bytes(),
    type=dict[str, KnownSet],
)
