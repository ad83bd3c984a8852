"""Where data sets come from: a URI, ``scheme:path?options``, and the reader of its scheme."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from trajmatch.data import (
    checks,
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
from trajmatch.data.statistics import channel_statistics, published_statistics
from trajmatch.errors import UserError
from trajmatch.importing import import_object

#: The data set inside the package, which needs no download: the default wherever none is named.
SHIPPED = shipped.NAME

#: Folders to search for data sets that are known only by name, separated as in ``PATH``.
SEARCH_VARIABLE = "TRAJMATCH_DATA"


class _Source(NamedTuple):
    path: str  # what stands after the colon
    load: Callable[[Path, Options], Dataset]
    # A set with a fixed name can be looked for in a folder; a user's own is named after its path.
    found_in: Callable[[Path], bool] | None = None
    options: tuple[str, ...] = ()  # beside those of every source


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
        ("subset", *options.OF_IMAGES),
    ),
    "imagefolder": _Source("PATH", folder.load, options=("train", "test", *options.OF_IMAGES)),
    "npz": _Source("FILE", _npz, options=("train", "test")),
    "hf": _Source(
        "NAME",
        huggingface.load,
        options=("train", "test", "config", "image", "label", *options.OF_IMAGES),
    ),
}


def load_dataset(uri: str | os.PathLike[str] | None = None) -> Dataset:
    """Load a data set.

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
            - ``imagefolder:PATH``: ``PATH/train/CLASS/*`` and ``PATH/test/CLASS/*`` (or ``val``;
              ``?train=NAME&test=NAME`` names other folders), or ``PATH/CLASS/*``, of which a
              quarter (``?test=0.25``) becomes the test set; square images of one size, or
              ``?size=N``;
            - ``npz:FILE``: arrays ``x_train``, ``y_train``, ``x_test``, ``y_test`` (or
              ``train_images``, ``train_labels``, ``test_images``, ``test_labels``;
              ``?train=NAME&test=NAME`` takes others), and ``class_names`` if wanted;
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
    if not isinstance(uri, str | os.PathLike | None):
        raise TypeError(
            "load_dataset: expected uri to be a text such as npz:FILE, but got "
            f"{type(uri).__name__}"
        )
    whole = SHIPPED if uri is None else os.fspath(uri)
    checks.check_text("the address of the data set", whole)
    if "\0" in whole:
        raise UserError(f"the address of the data set {whole!r} has a zero byte; leave it out")
    address, text = options.split(whole)
    scheme, colon, path = address.partition(":")
    source = _SOURCES.get(scheme)
    if address == SHIPPED:
        given = options.parse(text, options.OF_ALL, address)
        dataset = _take_classes(shipped.load(), given)
    elif source is not None and source.found_in and not colon:
        found = resolve_uri(whole)
        if found is None:
            raise UserError(
                f"{uri!r} is in no folder that {SEARCH_VARIABLE} lists ({searched_folders()}); put "
                f"it there, or give --data {scheme}:{source.path}"
            )
        return load_dataset(found)
    elif source is not None:
        form = f"{scheme}:{source.path}"
        if not colon or not path:
            raise UserError(f"{uri!r} lacks a path; write {form}")
        given = options.parse(text, (*options.OF_ALL, *source.options), form)
        with readable(path):
            dataset = source.load(Path(os.path.expanduser(path)), given)
    elif function.is_function(address):
        given = options.parse(text, options.OF_ALL, address)
        try:
            import_object(address)
        except UserError as error:
            if meant := _meant(address):
                raise UserError(f"there is no data source {uri!r}{meant}; {error}") from error
            raise
        dataset = _take_classes(function.load(address), given)
    elif not address:
        raise UserError(f"--data {uri!r} names no data set; give one of {_forms()}")
    else:
        raise UserError(f"there is no data source {uri!r}{_meant(address)}; give one of {_forms()}")
    dataset = _normalised_by(dataset, given.statistics)
    _warn_of_untested(dataset)
    return dataclasses.replace(dataset, name=f"{dataset.name}?{text}") if text else dataset


def _warn_of_untested(dataset: Dataset) -> None:
    """Warn if classes have no test images."""
    tested = set(dataset.test_labels.unique().tolist())
    lacking = [name for label, name in enumerate(dataset.class_names) if label not in tested]
    if lacking:
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        warnings.warn(
            f"data set {dataset.name}: no test image is of class {', '.join(lacking[:3])}{more}",
            stacklevel=3,
        )


def _normalised_by(dataset: Dataset, statistics: str | None) -> Dataset:
    """The same set with published statistics, or with those of its pixels."""
    published = statistics == "published"
    if statistics is None or published == dataset.published_statistics:
        return dataset
    instead = "leave out ?statistics=published"
    mean, std = (
        published_statistics(dataset.name, dataset.channels, instead)
        if published
        else channel_statistics(dataset.train_images)
    )
    return dataclasses.replace(dataset, mean=mean, std=std, published_statistics=published)


def absolute_uri(uri: str | None) -> str | None:
    """Make the path in an address absolute, so that it is found from another folder.

    Args:
        uri: What :func:`load_dataset` takes.

    Returns:
        The same; what is known by its name alone (a set of ``TRAJMATCH_DATA``, of the hub, a
        function) as it is.

    Raises:
        UserError: The path is not UTF-8.
    """
    scheme, path, text = _taken_apart(uri)
    if not path or scheme not in _SOURCES or (scheme == "hf" and not Path(path).is_dir()):
        return uri
    absolute = f"{scheme}:{os.path.abspath(os.path.expanduser(path))}{text}"
    checks.check_text("the address of the data set", absolute)
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
    scheme, path, text = _taken_apart(uri)
    if not path or scheme not in _SOURCES or scheme == "hf" or Path(path).expanduser().exists():
        return uri
    parts = Path(path).parts
    for around in beside.absolute().parents:
        for number in range(1, len(parts) + 1):
            place = around.joinpath(*parts[-number:])
            if place.exists():
                return f"{scheme}:{place}{text}"
    return uri


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
    base, options_of_recipe = options.split(wanted)
    scheme, path, _ = _taken_apart(uri)
    address, text = options.split(uri)
    source = _SOURCES.get(scheme)
    name = scheme if not path or (source and source.found_in) else Path(path).stem
    given = [option for option in text.split("&") if option]
    expected = [option for option in options_of_recipe.split("&") if option]
    if name == base:
        named = {option.partition("=")[0] for option in given}
        given += [option for option in expected if option.partition("=")[0] not in named]
    if recipe and (name != base or set(given) != set(expected)):
        say_other_data(uri, wanted, recipe)
    return "?".join(filter(None, (address, "&".join(given))))


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


def _taken_apart(uri: str | None) -> tuple[str, str, str]:
    """Scheme, path and ``?options`` of an address."""
    address, text = options.split(uri or "")
    scheme, _, path = address.partition(":")
    return scheme, path, f"?{text}" if text else ""


def _meant(address: str) -> str:
    """`` (did you mean ADDRESS?)`` by what the path is and by the names of sources, or nothing."""
    scheme, colon, path = address.partition(":")
    sources = {_folded(name): name for name in _SOURCES}
    close = difflib.get_close_matches(_folded(scheme), [*sources, _folded(SHIPPED)], n=1)
    place = path if colon else address
    if colon and close and close[0] in sources:
        form = f"{sources[close[0]]}:{path or _SOURCES[sources[close[0]]].path}"
    elif kind := _kind(Path(os.path.expanduser(place))):
        form = f"{kind}:{place}"
    elif close:
        name = sources.get(close[0], SHIPPED)
        form = f"{name}:{_SOURCES[name].path}" if name in _SOURCES else name
    else:
        return ""
    return f" (did you mean {form}?)"


def _folded(name: str) -> str:
    return "".join(filter(str.isalnum, name.casefold()))


def _kind(place: Path) -> str | None:
    """The source that reads a file or folder."""
    with contextlib.suppress(OSError):
        if place.is_file():
            return "npz" if place.suffix == ".npz" else None
        for name, source in _SOURCES.items():
            if source.found_in and source.found_in(place):
                return name
        if folder.found_in(place):
            return "imagefolder"
    return None


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


def searched_folders() -> str:
    """List the folders of ``TRAJMATCH_DATA`` for a message, and say which do not exist."""
    entries = filter(None, os.environ.get(SEARCH_VARIABLE, "").split(os.pathsep))
    return ", ".join(map(_as_found, entries)) or "it is empty"


def _as_found(entry: str) -> str:
    there = os.path.isdir(os.path.expanduser(entry))
    return entry if there else f"{entry}, which is no folder"


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
