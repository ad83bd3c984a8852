"""Identity of a data set as stores and distilled files keep it, and the check against it."""

from __future__ import annotations

from collections.abc import Mapping
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
        UserError: It is another one. The message names classes and shape where these differ, and
            fingerprints where they do not.
    """
    if known["fingerprint"] == given["fingerprint"]:
        return
    first = known_address or f"the data set {known['name']!r}"
    second = given_address or f"the data set {given['name']!r}"
    has, got = f" with {_told(known, given)}", f"has {_told(given, known)}"
    if _told(known, given) == _told(given, known):
        marks = [f"{each['fingerprint'][:16]}..." for each in (given, known)]
        has, got = "", f"holds other images (fingerprint {' instead of '.join(marks)})"
    raise UserError(f"{made} {first}{has}, but {second} {got}; give the same data with --data")


def _told(side: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Describe classes and shape; of the classes, first those that the other lacks."""
    names = sorted(side["class_names"], key=other["class_names"].__contains__)
    shown = [*names[:_NAMES_SHOWN], "..."] if len(names) > _NAMES_SHOWN else names
    return f"{len(names)} classes ({', '.join(shown)}) of images {side['shape']}"
