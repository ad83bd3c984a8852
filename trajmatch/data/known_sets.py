"""Data sets that are known by name, from ``known_sets.toml``, which explains the fields."""

from __future__ import annotations

from importlib import resources

import msgspec

from trajmatch.errors import UserError


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
    size: int = 0
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


def published_statistics(
    name: str, channels: int, instead: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Look up the constants by which the papers' programs normalise a data set.

    Args:
        name: Name of the data set, perhaps with options.
        channels: Channels of its images.
        instead: Remedy where there are none, for the message.

    Returns:
        ``(mean, std)``, one number per channel each, for pixels from 0 to 1.

    Raises:
        UserError: There are none for this set.
    """
    found = KNOWN_SETS.get(name.partition("?")[0])
    if found is None or len(found.mean) != channels:
        raise UserError(
            f"there are no published statistics of the data set {name} with {channels} channels, "
            f"only of {', '.join(KNOWN_SETS)}; {instead}"
        )
    return found.mean, found.std
