"""Data sets of the Hugging Face hub, through the optional package ``datasets``."""

from __future__ import annotations

import tempfile
import warnings
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
from trajmatch.errors import UserError, as_user_error

_VALUES = ("int", "uint", "string", "large_string", "bool")
_BYTES = ("binary", "large_binary", "binary_view")


@dataclass(frozen=True, kw_only=True)
class HubOptions(ImageOptions, PartOptions):
    """Options of a data set of the hub.

    Attributes:
        config: Name of one of several data sets under one name.
        image: Column of the images.
        label: Column of the labels.
    """

    config: str | None = None
    image: str | None = None
    label: str | None = None


def load(address: Address, options: HubOptions) -> Dataset:
    """Load a data set by its name on the hub, or from a folder that ``datasets`` can read.

    Columns are found by their type: the one ``Image``, or else the one of bytes or of ``bytes`` and
    ``path``; the one ``ClassLabel``, or else the one of integers or strings, whose values in order
    are the classes. Of several, ``?image=`` and ``?label=`` choose one. Of the splits, ``train`` is
    used and one for testing, by their usual names; without one, a part of each class becomes the
    test set. What is left out is said. No code of the data set is run. The package turns images of
    the type ``Image`` as their EXIF data says.

    Args:
        address: What ``datasets.load_dataset`` takes: ``USER/NAME``, or a folder.
        options: Parts are splits; all count.

    Returns:
        The data set, named after the last part of the name; grey where all images are, else RGB.

    Raises:
        UserError: The package is not installed, or the data set cannot be loaded or used.
    """
    what = address.base
    splits = _load(what, address.place.as_posix(), options.config)
    found = find_parts(what, list(splits), options)
    if found[0] is None:
        known = ", ".join(splits) or "none"
        raise UserError(f"{what} has no split 'train', but {known}; choose one with ?train=NAME")
    say_left_out(what, [each for each in splits if each not in found], options)
    features = splits[found[0]].features
    image = _column(what, features, "image", options.image, ("Image", "bytes"))
    label = _column(what, features, "label", options.label, ("ClassLabel", "value"))
    classes = _classes(what, features[label], splits[found[0]][label], label)
    all_names = list(map(str, classes))
    chosen = choose_classes(what, all_names, options.classes)
    values = list(range(len(classes))) if _kind(features[label]) == "ClassLabel" else classes
    labels = {values[old]: new for new, old in enumerate(chosen)}
    parts = []
    for name in filter(None, found):
        split, where, given = splits[name], f"{what}, split {name}", list(splits[name][label])
        _check_labelled(where, given, values)
        rows = [(row, labels[value]) for row, value in enumerate(given) if value in labels]
        parts.append(
            [
                Picture(new, partial(_image, split, row, image), f"{where}, row {row}")
                for row, new in rows
            ]
        )
    names = [all_names[index] for index in chosen]
    return load_pictures(what, address.place.name, parts, names, options, fraction=options.fraction)


def _load(what: str, name: str, config: str | None) -> Mapping[str, Any]:
    needs = f"{what} needs the package datasets; pip install trajmatch[hf]: "
    with as_user_error(needs, ModuleNotFoundError):
        import datasets
    advice = (
        "; check the name and the connection, and give ?config=NAME where the hub has several data "
        "sets under it"
    )
    kinds = (OSError, ValueError, RuntimeError)
    with as_user_error(f"{what} cannot be loaded: ", *kinds, advice=advice):
        if not Path(name).is_dir():
            return datasets.load_dataset(name, config)
        # The package keeps what it has read of a folder by the folder's last name and the head of
        # its README.md, and would return that for another folder, or for other files in this one.
        # Its copy is mapped into memory, and readable after the deletion.
        with tempfile.TemporaryDirectory("-trajmatch-hf", ignore_cleanup_errors=True) as cache:
            return datasets.load_dataset(name, config, cache_dir=cache)


def _image(split: Any, row: int, column: str) -> Any:
    """An image of Pillow, the bytes of a file, or its path."""
    value = split[row][column]
    if isinstance(value, Mapping):
        value = value.get("bytes") or Path(str(value.get("path")))
    if value is None:
        raise ValueError("the row has none")
    return value


def _kind(feature: Any) -> str:
    """``"Image"``, ``"ClassLabel"``, ``"bytes"`` of images, ``"value"``, or nothing."""
    kind, dtype = type(feature).__name__, str(getattr(feature, "dtype", ""))
    if kind in ("Image", "ClassLabel"):
        return kind
    if dtype in _BYTES or (isinstance(feature, Mapping) and "bytes" in feature):
        return "bytes"
    return "value" if dtype.startswith(_VALUES) else ""


def _column(
    what: str, features: Mapping[str, Any], option: str, given: str | None, kinds: Sequence[str]
) -> str:
    """Name of the one column of the first kind that there is, or of the one that was given."""
    fits = [
        [name for name, feature in features.items() if _kind(feature) == kind] for kind in kinds
    ]
    every = [name for names in fits for name in names]
    found = next(filter(None, fits), []) if given is None else [given]
    if len(found) != 1 or found[0] not in every:
        columns = ", ".join(f"{name} ({type(each).__name__})" for name, each in features.items())
        hint = nearest(given or "", every) if every else "there are none"
        raise UserError(
            f"{what} (its columns: {columns}) needs ?{option}=NAME, the column of its {option}s; "
            f"{hint}"
        )
    return found[0]


def _classes(what: str, feature: Any, values: Sequence[Any], label: str) -> list[Any]:
    """Names of the classes, or the values of the training labels that stand for them."""
    if _kind(feature) == "ClassLabel":
        return list(feature.names)
    given = [value for value in values if value is not None]
    found = sorted(set(given))
    if len(found) == len(given):
        raise UserError(
            f"{what}: the column {label!r} has another value in every row, so that it holds no "
            "labels; choose another with ?label=NAME"
        )
    return found


def _check_labelled(what: str, given: Sequence[Any], values: Sequence[Any]) -> None:
    """Warn of rows without a class of the training rows; refuse a split of nothing else."""
    known = set(values)
    lacking = sum(value not in known for value in given)
    message = f"{what}: {lacking} of {len(given)} rows have no label that is one of the classes"
    if lacking == len(given):
        raise UserError(f"{message}; choose another split with ?train=NAME or ?test=NAME")
    if lacking:
        warnings.warn(f"{message}; they are left out", stacklevel=2)


SOURCES = {"hf": Source("NAME", load)}
