"""Loading of data sets by address, and search for them by name."""

import contextlib
import dataclasses
import importlib
import os
import pkgutil
from pathlib import Path
from typing import get_type_hints

from trajmatch.data import options, readers
from trajmatch.data.address import Address, Source
from trajmatch.data.dataset import Dataset, check_text
from trajmatch.data.known_sets import published_statistics
from trajmatch.data.readers import arrays, imagefolder, shipped
from trajmatch.data.reading import readable
from trajmatch.errors import UserError, closest, warn
from trajmatch.importing import import_object

#: Name of the shipped data set, the default everywhere.
SHIPPED = shipped.NAME

#: Environment variable with the folders to search for data sets, separated as in ``PATH``.
SEARCH_VARIABLE = "TRAJMATCH_DATA"

# Reader of each source, collected from all modules of the package ``readers``.
_SOURCES: dict[str, Source] = {}
for _module in pkgutil.iter_modules(readers.__path__, f"{readers.__name__}."):
    _SOURCES |= importlib.import_module(_module.name).SOURCES


def load_dataset(uri: str | os.PathLike[str] | None = None) -> Dataset:
    """Load a data set from an address.

    Args:
        uri: One of

            - ``fashion-mnist-mini`` (the default): the shipped set, with 10,000 training and 2,000
              test images of Fashion-MNIST;
            - ``cifar10:ROOT``, ``cifar100:ROOT``, ``svhn:ROOT``, ``mnist:ROOT``,
              ``fashion-mnist:ROOT``: the official files, in ROOT or in the subfolder of ROOT where
              torchvision puts them; ``?download=true`` downloads them. CIFAR's binary version and
              gzipped files of MNIST and Fashion-MNIST also work;
            - ``torchvision:NAME:ROOT``: another classification set, by its torchvision class, e.g.
              ``STL10``, with the options ``?download=true``, ``?train=NAME&test=NAME`` (values of
              the class's argument ``split``) and ``?size=N``;
            - ``tiny-imagenet:ROOT``: the unpacked archive, 64 x 64 pixels;
            - ``imagenet:ROOT?subset=nette`` (``woof``, ``fruit``, ``meow``, ``squawk``, ``yellow``;
              or ``?classes=`` with WordNet ids): folders ``train/WNID`` and ``val/WNID``, 128 x 128
              pixels unless ``size`` is given;
            - ``imagefolder:PATH``: ``PATH/train/CLASS/*`` and ``PATH/test/CLASS/*`` (or ``val``, or
              ``?train=NAME&test=NAME``); or ``PATH/CLASS/*``, where a quarter (``?test=0.25``) of
              each class becomes the test set. Images are square and of one size, or are resized and
              cropped by ``?size=N``;
            - ``npz:FILE``: arrays ``x_train``, ``y_train``, ``x_test``, ``y_test`` (or
              ``train_images``, ``train_labels``, ..., or ``?train=NAME&test=NAME``), optionally
              ``class_names``; ``?targets=NAME`` reads ``train_NAME`` and ``test_NAME`` as targets;
            - ``hf:NAME``: a Hugging Face data set (``pip install trajmatch[hf]``);
            - ``package.module:function``: a function that returns a :class:`Dataset`, a mapping of
              arrays as in an ``.npz`` file, or a tuple of them.

            Options, joined by ``&``: ``classes=cat,dog`` or ``classes=0,3`` selects classes in that
            order; ``statistics=published`` normalises by the papers' constants; ``exif``,
            ``alpha``, ``bits`` and ``large`` control image decoding. A known set given without a
            path (``cifar10``) is searched for in the folders of ``TRAJMATCH_DATA``.

    Returns:
        The checked data set. Its name includes the options, so :func:`resolve_uri` finds it again.

    Raises:
        UserError: The source or an option is unknown, or the data cannot be used.
    """
    whole = SHIPPED if uri is None else os.fspath(uri)
    check_text("the address of the data set", whole)
    if "\0" in whole:
        raise UserError(f"the address of the data set {whole!r} contains a zero byte; remove it")
    address = Address.parse(whole)
    if (source := _source(address)) is None:
        if not address.base:
            raise UserError(f"--data {uri!r} names no data set; give one of {_forms()}")
        raise UserError(f"there is no data source {uri!r}{_meant(address)}; give one of {_forms()}")
    # No path: look in the folders of TRAJMATCH_DATA, if the set has a fixed name.
    form = _form(address.source, source)
    nothing = whole.partition("?")[0].endswith(":")
    if nothing or (source.path and not address.path):
        if nothing or source.found_in is None:
            raise UserError(f"{uri!r} lacks a path; write {form}")
        if (found := resolve_uri(whole)) is None:
            raise UserError(
                f"{uri!r} is in no folder that {SEARCH_VARIABLE} lists ({searched_folders()}); put "
                f"it there, or give --data {form}"
            )
        return load_dataset(found)
    # The reader annotates its argument ``options`` with the class of options that it takes.
    given = options.parse(address.options, get_type_hints(source.load)["options"], form)
    with readable(address.path):
        dataset = _normalised_by(source.load(address, given), given.statistics)
    _warn_of_untested(dataset)
    settings = "&".join(_settings(address))
    return dataclasses.replace(dataset, name=f"{dataset.name}?{settings}") if settings else dataset


def _source(address: Address) -> Source | None:
    """Return the source of an address, or None; raise UserError if a function is not importable."""
    source = _SOURCES.get(address.source)
    if source is not None and (source.path or not address.path):
        return source
    if not arrays.FUNCTION.fullmatch(address.base):
        return None
    # A misspelt scheme (``cifar:root``) looks like a function, too, so suggest a known source.
    try:
        import_object(address.base)
    except UserError as error:
        if meant := _meant(address):
            raise UserError(f"there is no data source {address.base!r}{meant}; {error}") from error
        raise
    return arrays.SOURCES["package.module"]._replace(path=address.path)


def _settings(address: Address) -> list[str]:
    """Return the options of an address without ``download``, which does not change the data."""
    return [
        each for each in address.options.split("&") if each and not each.startswith("download=")
    ]


def _warn_of_untested(dataset: Dataset) -> None:
    """Warn if classes have no test images."""
    tested = set(dataset.test_labels.unique().tolist())
    lacking = [name for label, name in enumerate(dataset.class_names) if label not in tested]
    if lacking:
        names = ", ".join(lacking[:3]) + (", ..." if len(lacking) > 3 else "")
        told = f"{len(lacking)} of {dataset.num_classes} classes have no test images: {names}"
        warn(f"data set {dataset.name}: {told}")


def _normalised_by(dataset: Dataset, statistics: str | None) -> Dataset:
    """Return the set with the mean and std that ``?statistics=`` asks for; None keeps them."""
    published = statistics == "published"
    if statistics is None or published == dataset.published_statistics:
        return dataset
    if not published:  # empty statistics are recomputed from the images
        return dataclasses.replace(dataset, mean=(), std=(), published_statistics=False)
    instead = "leave out ?statistics=published"
    mean, std = published_statistics(dataset.name, dataset.channels, instead)
    return dataclasses.replace(dataset, mean=mean, std=std, published_statistics=True)


def absolute_uri(uri: str | None) -> str | None:
    """Make the file path in an address absolute; return addresses without a path unchanged."""
    address = Address.parse(uri or "")
    if not _is_local(address):
        return uri
    absolute = str(address._replace(path=os.path.abspath(address.place)))
    check_text("the address of the data set", absolute)
    return absolute


def moved_uri(uri: str | None, beside: Path) -> str | None:
    """Return the new address of data that moved along with the store ``beside``, else ``uri``."""
    address = Address.parse(uri or "")
    if not _is_local(address) or address.place.exists():
        return uri
    parts = Path(address.path).parts
    for around in beside.absolute().parents:
        # Nearest parent first. For data that was at a/b/c, try c, then b/c, then a/b/c there.
        for number in range(1, len(parts) + 1):
            if (place := around.joinpath(*parts[-number:])).exists():
                return str(address._replace(path=str(place)))
    return uri


def _is_local(address: Address) -> bool:
    """Return True if the address has a path in the file system."""
    # An address ``hf:USER/NAME`` names a data set on the hub unless such a folder exists.
    known = address.path and address.source in _SOURCES
    return bool(known) and (address.source != "hf" or address.place.is_dir())


def of_recipe(uri: str | None, wanted: str, recipe: str = "") -> str | None:
    """Return the address of a data set, with the options that a recipe needs.

    ``wanted`` is the address in the recipe. If ``uri`` names the same data set, the options of
    ``wanted`` that it lacks are added. If ``recipe``, the recipe's name, is given, a different data
    set or option causes a warning.
    """
    if not wanted or uri is None:
        return uri
    address, expected = Address.parse(uri), Address.parse(wanted)
    source = _SOURCES.get(address.source)
    # The path of a known set says only where it is. Other sets are named after their file or
    # folder.
    fixed = not address.path or (source and source.found_in)
    name = address.scheme if fixed else Path(address.path).stem
    if name == expected.scheme:
        # Options in the address override the recipe's options.
        named = {each.partition("=")[0] for each in _settings(address)}
        open_ = [each for each in _settings(expected) if each.partition("=")[0] not in named]
        address = address._replace(options="&".join(filter(None, [address.options, *open_])))
    if recipe and (name != expected.scheme or {*_settings(address)} != {*_settings(expected)}):
        say_other_data(uri, wanted, recipe)
    return str(address)


def say_other_data(given: str, wanted: str, recipe: str) -> None:
    """Warn that a recipe is used with the data set ``given`` instead of ``wanted``."""
    warn(
        f"recipe {recipe} is for the data set {wanted}, but the data is {given}: its settings may "
        "not fit, and the published accuracy does not apply to this data"
    )


def _meant(address: Address) -> str:
    """Return `` (did you mean ADDRESS?)`` or an empty string."""
    if meant := closest(address.source.casefold(), _SOURCES):
        return meant
    place = Path(os.path.expanduser(address.base))
    with contextlib.suppress(OSError):
        if place.suffix == ".npz" or imagefolder.found_in(place):
            return f" (did you mean {'npz' if place.is_file() else 'imagefolder'}:{address.base}?)"
    return ""


def resolve_uri(name: str) -> str | None:
    """Return an address for a data set name such as ``"cifar10?classes=cat,dog"``, or None.

    The shipped set is always found. For other names, the folders listed in the environment variable
    ``TRAJMATCH_DATA`` are searched for the files of a known set, a folder ``NAME`` of class folders
    or ``NAME.npz``. Nothing is loaded; compare fingerprints to be sure of the content.

    Raises:
        UserError: A listed folder cannot be read.
    """
    base, _, text = name.partition("?")
    if base == SHIPPED:
        return name
    if base in ("", "..") or Path(base).name != base:  # a path, not a name
        return None
    for entry in _searched():
        with readable(f"{entry}, listed in {SEARCH_VARIABLE}"):
            if found := _find(base, Path(os.path.expanduser(entry))):
                return str(found._replace(options=text))
    return None


def searched_folders() -> str:
    """Return the folders of ``TRAJMATCH_DATA`` for a message."""
    return ", ".join(_searched()) or "the variable is empty"


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
