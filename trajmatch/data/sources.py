"""Where data sets come from: a URI, ``scheme:path``, and the reader that belongs to its scheme."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from trajmatch.data import cifar, folder, mnist, npz, shipped
from trajmatch.data.dataset import Dataset
from trajmatch.data.reading import readable
from trajmatch.errors import UserError

#: The data set inside the package, which needs no download: the default wherever none is named.
SHIPPED = shipped.NAME

#: Folders to search for data sets that are known only by name, separated as in ``PATH``.
SEARCH_VARIABLE = "TRAJMATCH_DATA"


class _Source(NamedTuple):
    path: str  # what stands after the colon
    load: Callable[[Path], Dataset]
    # A set with a fixed name can be looked for in a folder; a user's own is named after its path.
    found_in: Callable[[Path], bool] | None = None


_SOURCES = {
    "fashion-mnist": _Source("ROOT", mnist.FASHION.load, mnist.FASHION.found_in),
    "mnist": _Source("ROOT", mnist.DIGITS.load, mnist.DIGITS.found_in),
    "cifar10": _Source("ROOT", cifar.CIFAR10.load, cifar.CIFAR10.found_in),
    "cifar100": _Source("ROOT", cifar.CIFAR100.load, cifar.CIFAR100.found_in),
    "imagefolder": _Source("PATH", folder.load),
    "npz": _Source("FILE", npz.load),
}


def load_dataset(uri: str | None = None) -> Dataset:
    """Loads a data set.

    Args:
        uri: One of

            - ``fashion-mnist-mini``: 10,000 + 2,000 images of Fashion-MNIST, part of the package;
            - ``fashion-mnist:ROOT``, ``mnist:ROOT``: the four original IDX files, packed with gzip
              or not, in ROOT or where torchvision puts them under ROOT;
            - ``cifar10:ROOT``, ``cifar100:ROOT``: the official binary or Python version, in ROOT or
              in the subfolder that its archive unpacks to;
            - ``imagefolder:PATH``: ``PATH/train/CLASS/*`` and ``PATH/test/CLASS/*`` (or ``val``),
              square images of one size;
            - ``npz:FILE``: arrays ``x_train``, ``y_train``, ``x_test``, ``y_test`` (or
              ``train_images``, ``train_labels``, ``test_images``, ``test_labels``), and
              ``class_names`` if wanted.

            None means ``fashion-mnist-mini``.

    Returns:
        The data set, checked.

    Raises:
        UserError: There is no such source, or what it holds cannot be used.
    """
    if uri is None or uri == SHIPPED:
        return shipped.load()
    scheme, colon, path = uri.partition(":")
    source = _SOURCES.get(scheme)
    if source is None:
        raise UserError(f"there is no data source {uri!r}; give one of {_forms()}")
    if not colon or not path:
        raise UserError(f"{uri!r} lacks a path; write {scheme}:{source.path}")
    with readable(path):
        return source.load(Path(os.path.expanduser(path)))


def resolve_uri(name: str) -> str | None:
    """Finds a data set that is known only by its name.

    Looks at the shipped set, then into the folders that the environment variable
    ``TRAJMATCH_DATA`` lists: for the known sets, for a subfolder of that name with class folders,
    and for an ``.npz`` file of that name. Nothing is read; whether it is the right set, its
    fingerprint must say.

    Args:
        name: :attr:`Dataset.name`, e.g. ``"cifar10"``.

    Returns:
        What :func:`load_dataset` takes, or None where there is nothing of that name.

    Raises:
        UserError: A folder in the list cannot be searched.
    """
    if name == SHIPPED:
        return SHIPPED
    if not name or Path(name).name != name:  # a path is no name: look nowhere else
        return None
    for entry in filter(None, os.environ.get(SEARCH_VARIABLE, "").split(os.pathsep)):
        with readable(f"{entry}, listed in {SEARCH_VARIABLE}"):
            if uri := _find(name, Path(os.path.expanduser(entry))):
                return uri
    return None


def _find(name: str, root: Path) -> str | None:
    source = _SOURCES.get(name)
    if source and source.found_in and source.found_in(root):
        return f"{name}:{root}"
    if (root / name / "train").is_dir():
        return f"imagefolder:{root / name}"
    if (root / f"{name}.npz").is_file():
        return f"npz:{root / name}.npz"
    return None


def _forms() -> str:
    return ", ".join([SHIPPED, *(f"{name}:{source.path}" for name, source in _SOURCES.items())])
