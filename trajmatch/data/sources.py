"""Where data sets come from: a URI, ``scheme:path?options``, and the reader of its scheme."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from trajmatch.data import (
    cifar,
    folder,
    function,
    huggingface,
    mnist,
    npz,
    options,
    shipped,
    svhn,
    wordnet,
)
from trajmatch.data.dataset import Dataset
from trajmatch.data.options import Options
from trajmatch.data.reading import readable
from trajmatch.errors import UserError

#: The data set inside the package, which needs no download: the default wherever none is named.
SHIPPED = shipped.NAME

#: Folders to search for data sets that are known only by name, separated as in ``PATH``.
SEARCH_VARIABLE = "TRAJMATCH_DATA"


class _Source(NamedTuple):
    path: str  # what stands after the colon
    load: Callable[[Path, Options], Dataset]
    # A set with a fixed name can be looked for in a folder; a user's own is named after its path.
    found_in: Callable[[Path], bool] | None = None
    options: tuple[str, ...] = ("classes",)


def _whole(load: Callable[[Path], Dataset]) -> Callable[[Path, Options], Dataset]:
    """A reader of whole sets, of which the classes wanted are taken afterwards."""
    return lambda path, given: _take_classes(load(path), given)


def _take_classes(dataset: Dataset, given: Options) -> Dataset:
    if not given.classes:
        return dataset
    names = dataset.class_names
    return dataset.of_classes(options.choose_classes(dataset.name, names, given.classes))


def _npz(path: Path, given: Options) -> Dataset:
    return _take_classes(npz.load(path, given), given)


_SOURCES = {
    "fashion-mnist": _Source("ROOT", _whole(mnist.FASHION.load), mnist.FASHION.found_in),
    "mnist": _Source("ROOT", _whole(mnist.DIGITS.load), mnist.DIGITS.found_in),
    "cifar10": _Source("ROOT", _whole(cifar.CIFAR10.load), cifar.CIFAR10.found_in),
    "cifar100": _Source("ROOT", _whole(cifar.CIFAR100.load), cifar.CIFAR100.found_in),
    "svhn": _Source("ROOT", _whole(svhn.load), svhn.found_in),
    "tiny-imagenet": _Source(
        "ROOT", wordnet.load_tiny, wordnet.tiny_found_in, ("classes", *options.OF_IMAGES)
    ),
    "imagenet": _Source(
        "ROOT",
        wordnet.load_imagenet,
        wordnet.imagenet_found_in,
        ("classes", "subset", *options.OF_IMAGES),
    ),
    "imagefolder": _Source(
        "PATH", folder.load, options=("classes", "train", "test", *options.OF_IMAGES)
    ),
    "npz": _Source("FILE", _npz, options=("classes", "train", "test")),
    "hf": _Source(
        "NAME",
        huggingface.load,
        options=("classes", "train", "test", "config", "image", "label", *options.OF_IMAGES),
    ),
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
            - ``svhn:ROOT``: the two official MATLAB files of cropped digits;
            - ``tiny-imagenet:ROOT``: as its archive unpacks, 64 x 64 pixels;
            - ``imagenet:ROOT?subset=nette`` (or ``woof``, ``fruit``, ``meow``, ``squawk``,
              ``yellow``; or ``?classes=`` with WordNet ids): folders ``train/WNID`` and
              ``val/WNID``, resized to 128 x 128 pixels unless ``size`` says otherwise;
            - ``imagefolder:PATH``: ``PATH/train/CLASS/*`` and ``PATH/test/CLASS/*`` (or ``val``),
              or ``PATH/CLASS/*``, of which a quarter (``?test=0.25``) becomes the test set; square
              images of one size, or ``?size=N``;
            - ``npz:FILE``: arrays ``x_train``, ``y_train``, ``x_test``, ``y_test`` (or
              ``train_images``, ``train_labels``, ``test_images``, ``test_labels``), and
              ``class_names`` if wanted;
            - ``hf:NAME``: a data set of the Hugging Face hub (``pip install trajmatch[hf]``);
            - ``package.module:function``: a function of the user's that returns a :class:`Dataset`,
              a mapping of arrays as in an ``.npz`` file, or a tuple of them.

            ``?classes=cat,dog`` or ``?classes=0,3`` behind any of them takes some of the classes,
            in that order; several options are joined by ``&``. A set with a fixed name is looked
            for by that alone where ``TRAJMATCH_DATA`` points: ``cifar10``. None means
            ``fashion-mnist-mini``.

    Returns:
        The data set, checked. Options are part of its name, so that :func:`resolve_uri` finds the
        same set again.

    Raises:
        UserError: There is no such source or option, or what it holds cannot be used.
    """
    address, text = options.split(SHIPPED if uri is None else uri)
    scheme, colon, path = address.partition(":")
    source = _SOURCES.get(scheme)
    if address == SHIPPED:
        given = options.parse(text, ("classes",), address)
        dataset = _take_classes(shipped.load(), given)
    elif source is not None and source.found_in and not colon:
        found = resolve_uri(str(uri))
        if found is None:
            raise UserError(
                f"{uri!r} is in no folder that {SEARCH_VARIABLE} lists "
                f"({os.environ.get(SEARCH_VARIABLE) or 'it is empty'}); put it there, or write "
                f"{scheme}:{source.path}"
            )
        return load_dataset(found)
    elif source is not None:
        form = f"{scheme}:{source.path}"
        if not colon or not path:
            raise UserError(f"{uri!r} lacks a path; write {form}")
        given = options.parse(text, source.options, form)
        with readable(path):
            dataset = source.load(Path(os.path.expanduser(path)), given)
    elif function.is_function(address):
        given = options.parse(text, ("classes",), address)
        dataset = _take_classes(function.load(address), given)
    else:
        raise UserError(f"there is no data source {uri!r}; give one of {_forms()}")
    return dataclasses.replace(dataset, name=f"{dataset.name}?{text}") if text else dataset


def resolve_uri(name: str) -> str | None:
    """Finds a data set that is known only by its name.

    Looks at the shipped set, then into the folders that the environment variable
    ``TRAJMATCH_DATA`` lists: for the known sets, for a subfolder of that name with class folders,
    and for an ``.npz`` file of that name. Nothing is read; whether it is the right set, its
    fingerprint must say.

    Args:
        name: :attr:`Dataset.name`, e.g. ``"cifar10"`` or ``"cifar10?classes=cat,dog"``.

    Returns:
        What :func:`load_dataset` takes, or None where there is nothing of that name.

    Raises:
        UserError: A folder in the list cannot be searched.
    """
    base, text = options.split(name)
    suffix = f"?{text}" if text else ""
    if base == SHIPPED:
        return name
    if base in ("", "..") or Path(base).name != base:  # a path is no name: look nowhere else
        return None
    for entry in filter(None, os.environ.get(SEARCH_VARIABLE, "").split(os.pathsep)):
        with readable(f"{entry}, listed in {SEARCH_VARIABLE}"):
            if uri := _find(base, Path(os.path.expanduser(entry))):
                return uri + suffix
    return None


def _find(name: str, root: Path) -> str | None:
    source = _SOURCES.get(name)
    if source and source.found_in and source.found_in(root):
        return f"{name}:{root}"
    if folder.found_in(root / name):
        return f"imagefolder:{root / name}"
    if (root / f"{name}.npz").is_file():
        return f"npz:{root / name}.npz"
    return None


def _forms() -> str:
    forms = [f"{name}:{source.path}" for name, source in _SOURCES.items()]
    return ", ".join([SHIPPED, *forms, "package.module:function"])
