"""Data sets by address or by name, from the sources of all readers."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import pkgutil
import warnings
from pathlib import Path
from typing import get_type_hints

from trajmatch.data import options, readers
from trajmatch.data.address import Address, Source
from trajmatch.data.dataset import Dataset, check_text
from trajmatch.data.known_sets import published_statistics
from trajmatch.data.readers import arrays, imagefolder, shipped
from trajmatch.data.reading import readable
from trajmatch.errors import UserError, closest
from trajmatch.importing import import_object

#: The data set inside the package, which needs no download: the default wherever none is named.
SHIPPED = shipped.NAME

#: Folders to search for data sets that are known only by name, separated as in ``PATH``.
SEARCH_VARIABLE = "TRAJMATCH_DATA"

_SOURCES: dict[str, Source] = {}
for _module in pkgutil.iter_modules(readers.__path__, f"{readers.__name__}."):
    _SOURCES |= importlib.import_module(_module.name).SOURCES


def load_dataset(uri: str | os.PathLike[str] | None = None) -> Dataset:
    """Load a data set.

    Args:
        uri: One of

            - ``fashion-mnist-mini``: 10,000 + 2,000 images of Fashion-MNIST, part of the package;
            - ``cifar10:ROOT``, ``cifar100:ROOT``, ``svhn:ROOT``, ``mnist:ROOT``,
              ``fashion-mnist:ROOT``: the official files, in ROOT or where torchvision puts them
              under ROOT; ``?download=true`` gets them. Of CIFAR also the binary version, of MNIST
              and Fashion-MNIST also packed with gzip;
            - ``torchvision:NAME:ROOT``: any other data set for classification of
              ``torchvision.datasets``, by the name of its class, such as ``STL10``;
              ``?download=true``, ``?train=NAME&test=NAME`` (values of its argument ``split``) and
              ``?size=N``;
            - ``tiny-imagenet:ROOT``: as its archive unpacks, 64 x 64 pixels;
            - ``imagenet:ROOT?subset=nette`` (or ``woof``, ``fruit``, ``meow``, ``squawk``,
              ``yellow``; or ``?classes=`` with WordNet ids): folders ``train/WNID`` and
              ``val/WNID``, resized to 128 x 128 pixels unless ``size`` says otherwise;
            - ``imagefolder:PATH``: ``PATH/train/CLASS/*`` and ``PATH/test/CLASS/*`` (or ``val``;
              ``?train=NAME&test=NAME`` names other folders), or ``PATH/CLASS/*``, of which a
              quarter (``?test=0.25``) becomes the test set; square images of one size, or
              ``?size=N``;
            - ``npz:FILE``: arrays ``x_train``, ``y_train``, ``x_test``, ``y_test`` (or
              ``train_images``, ``train_labels``, ``test_images``, ``test_labels``;
              ``?train=NAME&test=NAME`` takes others), and ``class_names`` if wanted;
              ``?targets=NAME`` takes ``train_NAME`` and ``test_NAME`` as target vectors;
            - ``hf:NAME``: a data set of the Hugging Face hub (``pip install trajmatch[hf]``);
            - ``package.module:function``: a function of the user's that returns a :class:`Dataset`,
              a mapping of arrays as in an ``.npz`` file, or a tuple of them.

            ``?classes=cat,dog`` or ``?classes=0,3`` behind any of them takes some of the classes,
            in that order, ``?statistics=published`` normalises by the constants of the papers'
            programs, and ``exif``, ``alpha``, ``bits`` and ``large`` say how image files are read;
            several options are joined by ``&``. A set with a fixed name is looked
            for by that alone where ``TRAJMATCH_DATA`` points: ``cifar10``. None means
            ``fashion-mnist-mini``.

    Returns:
        The data set, checked. Options are part of its name, so that :func:`resolve_uri` finds the
        same set again.

    Raises:
        UserError: There is no such source or option, or what it holds cannot be used.
    """
    whole = SHIPPED if uri is None else os.fspath(uri)
    check_text("the address of the data set", whole)
    if "\0" in whole:
        raise UserError(f"the address of the data set {whole!r} has a zero byte; leave it out")
    address = Address.parse(whole)
    source = _source(address)
    if source is None:
        if not address.base:
            raise UserError(f"--data {uri!r} names no data set; give one of {_forms()}")
        raise UserError(f"there is no data source {uri!r}{_meant(address)}; give one of {_forms()}")
    form = _form(address.source, source)
    nothing = whole.partition("?")[0].endswith(":")
    if nothing or (source.path and not address.path):
        if nothing or source.found_in is None:
            raise UserError(f"{uri!r} lacks a path; write {form}")
        found = resolve_uri(whole)
        if found is None:
            raise UserError(
                f"{uri!r} is in no folder that {SEARCH_VARIABLE} lists ({searched_folders()}); put "
                f"it there, or give --data {form}"
            )
        return load_dataset(found)
    given = options.parse(address.options, get_type_hints(source.load)["options"], form)
    with readable(address.path):
        dataset = _normalised_by(source.load(address, given), given.statistics)
    _warn_of_untested(dataset)
    settings = "&".join(_settings(address))
    return dataclasses.replace(dataset, name=f"{dataset.name}?{settings}") if settings else dataset


def _source(address: Address) -> Source | None:
    """The source of an address; of a function that there is not, raise what is wrong with it."""
    source = _SOURCES.get(address.source)
    if source is not None and (source.path or not address.path):
        return source
    if not arrays.is_function(address):
        return None
    try:
        import_object(address.base)
    except UserError as error:
        if meant := _meant(address):
            raise UserError(f"there is no data source {address.base!r}{meant}; {error}") from error
        raise
    return arrays.SOURCES["package.module"]._replace(path=address.path)


def _settings(address: Address) -> list[str]:
    """The options that decide what a data set is, and not only where it comes from."""
    return [
        each for each in address.options.split("&") if each and not each.startswith("download=")
    ]


def _warn_of_untested(dataset: Dataset) -> None:
    """Warn if classes have no test images."""
    tested = set(dataset.test_labels.unique().tolist())
    lacking = [name for label, name in enumerate(dataset.class_names) if label not in tested]
    if lacking:
        told = f"no test image is of class {', '.join(lacking[:3])} ({len(lacking)} lack any)"
        warnings.warn(f"data set {dataset.name}: {told}", stacklevel=3)


def _normalised_by(dataset: Dataset, statistics: str | None) -> Dataset:
    """Return the set with published statistics, or with the statistics of its pixels."""
    published = statistics == "published"
    if statistics is None or published == dataset.published_statistics:
        return dataset
    if not published:  # the set finds its own
        return dataclasses.replace(dataset, mean=(), std=(), published_statistics=False)
    instead = "leave out ?statistics=published"
    mean, std = published_statistics(dataset.name, dataset.channels, instead)
    return dataclasses.replace(dataset, mean=mean, std=std, published_statistics=True)


def absolute_uri(uri: str | None) -> str | None:
    """Make the path in an address absolute, so that it is found from another folder.

    Args:
        uri: As :func:`load_dataset` takes it.

    Returns:
        The same; what is known by its name alone (a set of ``TRAJMATCH_DATA``, of the hub, a
        function) as it is.

    Raises:
        UserError: The path is not UTF-8.
    """
    address = Address.parse(uri or "")
    if not _is_local(address):
        return uri
    absolute = str(address._replace(path=os.path.abspath(address.place)))
    check_text("the address of the data set", absolute)
    return absolute


def moved_uri(uri: str | None, beside: Path) -> str | None:
    """Find data that was moved together with a store or file made of it.

    Args:
        uri: Where the data was.
        beside: The store or file.

    Returns:
        The address with the path of the nearest place around ``beside`` that ends as the path given
        does; that path itself where it exists, and where there is no such place.
    """
    address = Address.parse(uri or "")
    if not _is_local(address) or address.place.exists():
        return uri
    parts = Path(address.path).parts
    for around in beside.absolute().parents:
        for number in range(1, len(parts) + 1):
            place = around.joinpath(*parts[-number:])
            if place.exists():
                return str(address._replace(path=str(place)))
    return uri


def _is_local(address: Address) -> bool:
    """True if the path of an address is a place in the file system."""
    known = address.path and address.source in _SOURCES
    return bool(known) and (address.source != "hf" or address.place.is_dir())


def of_recipe(uri: str | None, wanted: str, recipe: str = "") -> str | None:
    """Complete the address of a data set by the options that a recipe has for that set.

    Args:
        uri: The address given.
        wanted: Name of the recipe's data set, with its options; empty for any.
        recipe: Name of the recipe, for the warning that it is for another data set; empty for no
            warning.

    Returns:
        The address; with the options of the recipe that it leaves open if it is of that set.
    """
    if not wanted or uri is None:
        return uri
    address, expected = Address.parse(uri), Address.parse(wanted)
    source = _SOURCES.get(address.source)
    fixed = not address.path or (source and source.found_in)
    name = address.scheme if fixed else Path(address.path).stem
    if name == expected.scheme:
        named = {each.partition("=")[0] for each in _settings(address)}
        open_ = [each for each in _settings(expected) if each.partition("=")[0] not in named]
        address = address._replace(options="&".join(filter(None, [address.options, *open_])))
    if recipe and (name != expected.scheme or {*_settings(address)} != {*_settings(expected)}):
        say_other_data(uri, wanted, recipe)
    return str(address)


def say_other_data(given: str, wanted: str, recipe: str) -> None:
    """Warn that a recipe is used for another data set than it is made for.

    Args:
        given: The data set.
        wanted: That of the recipe.
        recipe: Name of the recipe.
    """
    warnings.warn(
        f"recipe {recipe} is for the data set {wanted}, but the data is {given}: its settings may "
        "not fit, and a published accuracy is not of this data",
        stacklevel=2,
    )


def _meant(address: Address) -> str:
    """`` (did you mean ADDRESS?)`` by the names of sources or by what is there, or nothing."""
    if meant := closest(address.source.casefold(), _SOURCES):
        return meant
    place = Path(os.path.expanduser(address.base))
    with contextlib.suppress(OSError):
        if place.suffix == ".npz" or imagefolder.found_in(place):
            return f" (did you mean {'npz' if place.is_file() else 'imagefolder'}:{address.base}?)"
    return ""


def resolve_uri(name: str) -> str | None:
    """Find a data set that is known only by its name.

    The shipped set is known; others are looked for in the folders that the environment variable
    ``TRAJMATCH_DATA`` lists: the known sets, a subfolder of that name with class folders, and an
    ``.npz`` file of that name. Nothing is read; the fingerprint says if it is the right set.

    Args:
        name: :attr:`Dataset.name`, e.g. ``"cifar10"`` or ``"cifar10?classes=cat,dog"``.

    Returns:
        What :func:`load_dataset` takes, or None where there is nothing of that name.

    Raises:
        UserError: A folder in the list cannot be searched.
    """
    base, _, text = name.partition("?")
    if base == SHIPPED:
        return name
    if base in ("", "..") or Path(base).name != base:  # a path is no name: look nowhere else
        return None
    for entry in _searched():
        with readable(f"{entry}, listed in {SEARCH_VARIABLE}"):
            if found := _find(base, Path(os.path.expanduser(entry))):
                return str(found._replace(options=text))
    return None


def searched_folders() -> str:
    """List the folders of ``TRAJMATCH_DATA`` for a message."""
    return ", ".join(_searched()) or "it is empty"


def _searched() -> list[str]:
    return [*filter(None, os.environ.get(SEARCH_VARIABLE, "").split(os.pathsep))]


def _find(name: str, root: Path) -> Address | None:
    source, address = _SOURCES.get(name), Address(name, str(root))
    if source and source.found_in and source.found_in(address):
        return address
    if imagefolder.found_in(root / name):
        return Address("imagefolder", str(root / name))
    if (root / f"{name}.npz").is_file():
        return Address("npz", f"{root / name}.npz")
    return None


def _form(name: str, source: Source) -> str:
    return ":".join(filter(None, (name, source.path)))


def _forms() -> str:
    return ", ".join(_form(name, source) for name, source in _SOURCES.items())
