"""Constants of known data sets, read from ``known_sets.toml``; its comments explain the fields."""

from importlib import resources

import msgspec

from trajmatch.errors import UserError


class Binary(msgspec.Struct, frozen=True):
    """Files of the official binary version of CIFAR."""

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    label_bytes: int


class KnownSet(msgspec.Struct, frozen=True, kw_only=True):
    """Table of a data set in ``known_sets.toml``."""

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    size: int = 0
    torchvision: str = ""
    files: tuple[str, ...] = ()
    more_files: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    binary: Binary | None = None
    subsets: dict[str, dict[str, str]] = {}


#: Known sets by name.
KNOWN_SETS = msgspec.toml.decode(
    resources.files("trajmatch.data").joinpath("known_sets.toml").read_bytes(),
    type=dict[str, KnownSet],
)


def published_statistics(
    name: str, channels: int, instead: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return ``(mean, std)`` per channel, for pixels in 0..1, as used in the papers' code.

    Options in ``name`` are ignored. Raises UserError, with the advice ``instead``, if the set has
    no published statistics.
    """
    found = KNOWN_SETS.get(name.partition("?")[0])
    if found is None or len(found.mean) != channels:
        raise UserError(
            f"there are no published statistics of the data set {name} with {channels} channels, "
            f"only of {', '.join(KNOWN_SETS)}; {instead}"
        )
    return found.mean, found.std
