"""Identity of a data set as stores and distilled files keep it, and the check against it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trajmatch.data.dataset import Dataset
from trajmatch.errors import UserError

_NAMES_SHOWN = 5


def describe_dataset(dataset: Dataset) -> dict[str, Any]:
    """Describe a data set as a manifest keeps it: name, fingerprint, class names and shape."""
    return {
        "name": dataset.name,
        "fingerprint": dataset.fingerprint,
        "class_names": list(dataset.class_names),
        "shape": list(dataset.train_images.shape[1:]),
    }


def check_same_data(
    made: str,
    known: Mapping[str, Any],
    given: Mapping[str, Any],
    known_address: str | None = None,
    given_address: str | None = None,
) -> None:
    """Make sure that a data set is the one that something was made from.

    Args:
        made: Beginning of the message, e.g. ``"d.safetensors was distilled from"``.
        known: Description of the data set that it was made from, as :func:`describe_dataset` gives.
        given: Description of the data set given. The names of the two may differ.
        known_address: Address of the first. Default: its name.
        given_address: Address of the second. Default: its name.

    Raises:
        UserError: It is another one. The message names classes and image size where these differ,
            and fingerprints where they do not.
    """
    if known["fingerprint"] == given["fingerprint"]:
        return
    first = known_address or f"the data set {known['name']!r}"
    second = given_address or f"the data set {given['name']!r}"
    pairs = [pair for pair in _traits(known, given) if len({*pair}) > 1]
    if pairs:
        has, got = (" and ".join(side) for side in zip(*pairs, strict=True))
        raise UserError(
            f"{made} {first} with {has}, but {second} has {got}; give the same data with --data"
        )
    marks = [f"{each['fingerprint'][:16]}..." for each in (given, known)]
    raise UserError(
        f"{made} {first}, but {second} holds other images of the same size and classes, or in "
        f"another order (fingerprint {' instead of '.join(marks)}); give the same data with --data"
    )


def _traits(known: Mapping[str, Any], given: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return pairs of words for classes, size and channels; equal words for what is equal."""
    sides = known, given
    names = [side["class_names"] for side in sides]
    other = [k for k, pair in enumerate(zip(*names, strict=False)) if len({*pair}) > 1]
    classes = [f"class {other[0]} named {each[other[0]]!r}" if other else "" for each in names]
    if len(names[0]) != len(names[1]):
        classes = [f"{len(each)} classes ({_listed(each)})" for each in names]
    sizes = ["x".join(map(str, side["shape"][1:])) + " pixels" for side in sides]
    channels = [f"{side['shape'][0]} channel" + "s" * (side["shape"][0] > 1) for side in sides]
    return [(one, other) for one, other in (classes, sizes, channels)]


def _listed(names: Sequence[str]) -> str:
    more = [f"and {len(names) - _NAMES_SHOWN} more"] if len(names) > _NAMES_SHOWN else []
    return ", ".join([*names[:_NAMES_SHOWN], *more])
