"""Hugging Face data sets, through the optional package ``datasets``."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from trajmatch.data.address import Address, Source
from trajmatch.data.dataset import Dataset
from trajmatch.data.decode import Picture, load_pictures
from trajmatch.data.options import ImageOptions, PartOptions, choose_classes, nearest
from trajmatch.data.parts import find_parts, say_left_out
from trajmatch.errors import UserError, as_user_error, warn

_VALUES = ("int", "uint", "string", "large_string", "bool")
_BYTES = ("binary", "large_binary", "binary_view")


@dataclass(frozen=True, kw_only=True)
class HubOptions(ImageOptions, PartOptions):
    """Options of a hub data set: its configuration, and its image and label columns."""

    config: str | None = None
    image: str | None = None
    label: str | None = None


def load(address: Address, options: HubOptions) -> Dataset:
    """Load a data set by ``USER/NAME`` on the hub, or from a folder that ``datasets`` can read.

    The image column is the one of type ``Image``; without such a column, the one with encoded
    bytes, or with a dictionary of ``bytes`` and ``path``. The label column is the one of type
    ``ClassLabel``; without such a column, the one with integers or strings, whose sorted values
    become the classes. If several columns fit, ``?image=`` and ``?label=`` choose one.

    Splits are found by their usual names; without a test split, a part of each class becomes the
    test set. No code of the data set runs. ``datasets`` applies the EXIF orientation to columns of
    type ``Image``.
    """
    what = address.base
    splits = _load(what, address.place.as_posix(), options.config)
    found = find_parts(what, list(splits), options)
    if found[0] is None:
        known = ", ".join(splits) or "none"
        raise UserError(
            f"{what} has no split 'train'; its splits are {known}; choose one with ?train=NAME"
        )
    say_left_out(what, [each for each in splits if each not in found], options)
    features = splits[found[0]].features
    image = _column(what, features, "image", options.image, ("Image", "bytes"))
    label = _column(what, features, "label", options.label, ("ClassLabel", "value"))
    classes = _classes(what, features[label], splits[found[0]][label], label)
    all_names = list(map(str, classes))
    chosen = choose_classes(what, all_names, options.classes)
    # Rows of a ClassLabel column hold class indices; rows of other columns hold the values.
    values = list(range(len(classes))) if _kind(features[label]) == "ClassLabel" else classes
    labels = {values[old]: new for new, old in enumerate(chosen)}
    parts = []
    for name in filter(None, found):
        split, where, given = splits[name], f"{what}, split {name}", list(splits[name][label])
        _check_labelled(where, given, values)
        # Skip the rows of classes that ?classes= leaves out; images are decoded later.
        pictures = [
            Picture(labels[value], partial(_image, split, row, image), f"{where}, row {row}")
            for row, value in enumerate(given)
            if value in labels
        ]
        parts.append(pictures)
    names = [all_names[index] for index in chosen]
    return load_pictures(what, address.place.name, parts, names, options, fraction=options.fraction)


def _load(what: str, name: str, config: str | None) -> Mapping[str, Any]:
    needs = f"{what} needs the package datasets; pip install trajmatch[hf]: "
    with as_user_error(needs, ModuleNotFoundError):
        import datasets
    advice = (
        "; check the name and the connection, and add ?config=NAME if the hub has several "
        "configurations of this data set"
    )
    kinds = (OSError, ValueError, RuntimeError)
    with as_user_error(f"{what} cannot be loaded: ", *kinds, advice=advice):
        if not Path(name).is_dir():
            return datasets.load_dataset(name, config)
        # ``datasets`` caches a folder under its last name and the beginning of its README.md, so
        # the user's cache could return the content of another folder or of old files. The temporary
        # cache is memory-mapped, so the data stays readable after the cache is deleted.
        with tempfile.TemporaryDirectory("-trajmatch-hf", ignore_cleanup_errors=True) as cache:
            return datasets.load_dataset(name, config, cache_dir=cache)


def _image(split: Any, row: int, column: str) -> Any:
    """Return the image of a row: a Pillow image, encoded bytes or a path."""
    value = split[row][column]
    if isinstance(value, Mapping):
        value = value.get("bytes") or Path(str(value.get("path")))
    if value is None:
        raise ValueError("the row has no image")
    return value


def _kind(feature: Any) -> str:
    """Classify a column: ``"Image"``, ``"ClassLabel"``, ``"bytes"``, ``"value"``, or ``""``."""
    kind, dtype = type(feature).__name__, str(getattr(feature, "dtype", ""))
    if kind in ("Image", "ClassLabel"):
        return kind
    if dtype in _BYTES or (isinstance(feature, Mapping) and "bytes" in feature):
        return "bytes"
    return "value" if dtype.startswith(_VALUES) else ""


def _column(
    what: str, features: Mapping[str, Any], option: str, given: str | None, kinds: Sequence[str]
) -> str:
    """Return the name of the column to read.

    This is ``given``, unless it is None. Otherwise, it is the only column of the first kind in
    ``kinds`` that occurs. Raises UserError if no column fits, or more than one.
    """
    fits = [
        [name for name, feature in features.items() if _kind(feature) == kind] for kind in kinds
    ]
    every = [name for names in fits for name in names]
    found = next(filter(None, fits), []) if given is None else [given]
    if len(found) != 1 or found[0] not in every:
        columns = ", ".join(f"{name} ({type(each).__name__})" for name, each in features.items())
        hint = nearest(given or "", every) if every else "there are none"
        raise UserError(
            f"{what} (its columns: {columns}) needs ?{option}=NAME with the name of the column "
            f"that holds the {option}s; {hint}"
        )
    return found[0]


def _classes(what: str, feature: Any, values: Sequence[Any], label: str) -> list[Any]:
    """Return the names of a ``ClassLabel`` column, else the sorted distinct training labels."""
    if _kind(feature) == "ClassLabel":
        return list(feature.names)
    given = [value for value in values if value is not None]
    found = sorted(set(given))
    # Values that never repeat are identifiers or captions.
    if len(found) == len(given):
        raise UserError(
            f"{what}: the column {label!r} has a different value in every row, so it cannot hold "
            "labels; choose another with ?label=NAME"
        )
    return found


def _check_labelled(what: str, given: Sequence[Any], values: Sequence[Any]) -> None:
    """Warn about rows whose label is not a class; raise UserError if no row has a valid label."""
    known = set(values)
    lacking = sum(value not in known for value in given)
    message = f"{what}: {lacking} of {len(given)} rows have a missing or unknown label"
    if lacking == len(given):
        raise UserError(f"{message}; choose another split with ?train=NAME or ?test=NAME")
    if lacking:
        warn(f"{message}; they are left out")


SOURCES = {"hf": Source("NAME", load)}
