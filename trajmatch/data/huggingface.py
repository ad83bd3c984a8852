"""Data sets of the Hugging Face hub, through the optional package ``datasets``."""

from __future__ import annotations

import io
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trajmatch.data import decode
from trajmatch.data.dataset import Dataset
from trajmatch.data.options import Options, choose_classes, nearest
from trajmatch.data.parts import find_parts, say_left_out, split_parts
from trajmatch.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

# The column that holds the labels, where several columns could and none has a type of its own.
_LABEL_NAMES = ("label", "labels", "class", "target", "y")


def load(path: Path, options: Options) -> Dataset:
    """Load a data set by its name on the hub, or from a folder that ``datasets`` can read.

    Columns are found by their type: the one ``Image``, or else the one of bytes or of ``bytes`` and
    ``path``; the one ``ClassLabel``, or else a column of integers or strings, whose values in
    order are the classes. Of the splits, ``train`` is used and one for testing, by their usual
    names; without one, a part of each class becomes the test set. What is left out is said. No code
    of the data set is run. The package turns images of the type ``Image`` as their EXIF data says.

    Args:
        path: What ``datasets.load_dataset`` takes: ``USER/NAME``, or a folder.
        options: ``classes``, ``train`` and ``test`` (splits), ``config`` (one of several sets under
            the name), ``image`` and ``label`` (columns) and those of images count.

    Returns:
        The data set, named after the last part of the name; grey where all images are, else RGB.

    Raises:
        UserError: The package is not installed, or the data set cannot be loaded or used.
    """
    name = path.as_posix()
    what = f"hf:{name}"
    splits = _load(what, name, options.config)
    train_split, test_split = find_parts(what, list(splits), options)
    if train_split is None:
        raise UserError(
            f"{what} has no split 'train', but {', '.join(splits) or 'none'}; choose one with "
            "?train=NAME"
        )
    left_out = [each for each in splits if each not in (train_split, test_split)]
    say_left_out(what, left_out, options)
    features = splits[train_split].features
    image = _column(what, features, "image", options.image, (_is_image, _is_bytes))
    label = _label_column(what, features, options.label)
    classes = _classes(what, features[label], splits[train_split][label], label)
    all_names = list(map(str, classes))
    chosen = choose_classes(what, all_names, options.classes)
    names = [all_names[index] for index in chosen]
    rows = [
        _Rows(f"{what}, split {split}", splits[split], image, label, classes, chosen)
        for split in (train_split, test_split)
        if split is not None
    ]
    size, colour = _shape(rows, options.size)
    lost: list[str] = []
    train, *rest = [part.decode(size, options, lost, colour=colour) for part in rows]
    decode.say_lost(what, lost, sum(len(part) for part in rows))
    if not rest:
        train, rest = _split(what, *train, names, options.fraction)
    return Dataset.from_arrays(path.name, *train, *rest[0], names)


class _Rows:
    """Rows of one split that have a class wanted."""

    def __init__(
        self,
        what: str,
        split: Any,
        image: str,
        label: str,
        classes: Sequence[Any],
        chosen: Sequence[int],
    ) -> None:
        self.what = what
        self._split, self._image = split, image
        numbers = {value: index for index, value in enumerate(classes)}
        if type(split.features[label]).__name__ == "ClassLabel":
            numbers = {index: index for index in range(len(classes))}
        new = {old: index for index, old in enumerate(chosen)}
        given = [numbers.get(value, -1) for value in split[label]]
        if lacking := given.count(-1):
            _say_unlabelled(what, lacking, len(given), label)
        self._rows = [row for row, value in enumerate(given) if value in new]
        self._labels = torch.tensor([new[given[row]] for row in self._rows], dtype=torch.int64)

    def __len__(self) -> int:
        return len(self._rows)

    def images(self) -> Iterator[tuple[str, Image]]:
        """Name, for messages, and image of each row, open until the next one."""
        for row in self._rows:
            name, value = f"{self.what}, row {row}", self._split[row][self._image]
            if value is None:
                raise UserError(f"{name} has no image; leave its class out")
            with _opened(name, value) as image:
                yield name, image

    def decode(
        self, size: int, options: Options, lost: list[str], *, colour: bool
    ) -> tuple[Tensor, Tensor]:
        """Images ``[N, C, size, size]``, uint8, and labels ``[N]``."""
        images = decode.empty_images(len(self), size, colour=colour)
        with decode.limits(options):
            for index, (name, image) in enumerate(self.images()):
                images[index] = decode.to_array(name, image, size, options, lost, colour=colour)
        return torch.from_numpy(images), self._labels


def _load(what: str, name: str, config: str | None) -> Mapping[str, Any]:
    try:
        import datasets
    except ModuleNotFoundError as error:
        if error.name != "datasets":
            raise
        raise UserError(f"{what} needs the package datasets; pip install trajmatch[hf]") from error
    try:
        if not Path(name).is_dir():
            return datasets.load_dataset(name, config)
        # The package keeps what it has read of a folder by the folder's last name and the head of
        # its README.md, and would return that for another folder, or for other files in this one.
        # Its copy is mapped into memory, and readable after the deletion.
        with tempfile.TemporaryDirectory("-trajmatch-hf", ignore_cleanup_errors=True) as cache:
            return datasets.load_dataset(name, config, cache_dir=cache)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{what} cannot be loaded: {error}; check the name and the connection, and give "
            "?config=NAME where the hub has several data sets under it"
        ) from error


@contextmanager
def _opened(name: str, value: Any) -> Iterator[Image]:
    """Open an image of Pillow, of bytes, or of ``bytes`` and ``path``."""
    if isinstance(value, Mapping):
        value = value.get("bytes") or Path(str(value.get("path")))
    if isinstance(value, bytes):
        value = io.BytesIO(value)
    if isinstance(value, io.BytesIO | Path):
        with decode.opened(value, name) as image:
            yield image
    else:
        yield value


def _is_image(feature: Any) -> bool:
    return type(feature).__name__ == "Image"


def _is_bytes(feature: Any) -> bool:
    if isinstance(feature, Mapping):
        return "bytes" in feature
    return str(getattr(feature, "dtype", "")) in ("binary", "large_binary", "binary_view")


def _is_class(feature: Any) -> bool:
    return type(feature).__name__ == "ClassLabel"


def _is_value(feature: Any) -> bool:
    dtype = str(getattr(feature, "dtype", ""))
    return dtype.startswith(("int", "uint", "string", "large_string", "bool")) and not _is_class(
        feature
    )


def _column(
    what: str,
    features: Mapping[str, Any],
    option: str,
    given: str | None,
    kinds: Sequence[Any],
) -> str:
    """Name of the one column of the first kind that there is, or of the one that was given."""
    fits = [[name for name, feature in features.items() if kind(feature)] for kind in kinds]
    if given is not None:
        every = [name for names in fits for name in names]
        if given not in every:
            hint = nearest(given, every) if every else "it has none"
            raise UserError(f"{what} has no column {given!r} of {option}s; {hint}")
        return given
    found: list[str] = next(filter(None, fits), [])
    if len(found) != 1:
        columns = ", ".join(f"{name} ({_type(each)})" for name, each in features.items())
        raise UserError(
            f"{what} has {len(found)} columns of {option}s (its columns: {columns}); "
            + (f"choose one with ?{option}=NAME" if found else "it cannot be used")
        )
    return found[0]


def _label_column(what: str, features: Mapping[str, Any], given: str | None) -> str:
    """Name of the column of labels; where columns without names of classes vie, by its name."""
    values = [name for name, feature in features.items() if _is_value(feature)]
    if given is None and len(values) > 1 and not any(map(_is_class, features.values())):
        given = next((name for usual in _LABEL_NAMES for name in values if name == usual), None)
        if given is not None:
            others = ", ".join(repr(name) for name in values if name != given)
            warnings.warn(
                f"{what}: the column {given!r} is taken for the labels, not {others}; ?label=NAME "
                "chooses another",
                stacklevel=2,
            )
    return _column(what, features, "label", given, (_is_class, _is_value))


def _classes(what: str, feature: Any, values: Iterable[Any], label: str) -> list[Any]:
    """Names of the classes, or the values of the training labels that stand for them."""
    if _is_class(feature):
        return list(feature.names)
    given = [value for value in values if value is not None]
    found = sorted(set(given))
    if len(found) == len(given):
        raise UserError(
            f"{what}: the column {label!r} has another value in every row, so that it holds no "
            "labels; choose another with ?label=NAME"
        )
    return found


def _say_unlabelled(what: str, lacking: int, count: int, label: str) -> None:
    """Warn of rows without a class of the training rows; refuse a split of nothing else."""
    message = (
        f"{what}: {lacking} of {count} rows have no label in the column {label!r} that is one of "
        "the classes"
    )
    if lacking == count:
        raise UserError(f"{message}; choose another split with ?train=NAME or ?test=NAME")
    warnings.warn(f"{message}; they are left out", stacklevel=2)


def _type(feature: Any) -> str:
    dtype = getattr(feature, "dtype", "")
    name = type(feature).__name__
    return f"{name} of {dtype}" if name == "Value" and dtype else name


def _shape(parts: list[_Rows], size: int | None) -> tuple[int, bool]:
    """Side of all images in pixels, and True if any has colour."""
    side, colour = 0, False
    for part in parts:
        for name, image in part.images():
            width, height = image.size
            side = side or width
            colour = colour or decode.has_colour(image)
            if size is None and (width, height) != (side, side):
                raise UserError(
                    f"{name} is {width} x {height} pixels, where {side} x {side} was expected; add "
                    "?size=N to bring all images to one size"
                )
    return size or side, colour


def _split(
    what: str, images: Tensor, labels: Tensor, names: list[str], fraction: float | None
) -> tuple[tuple[Tensor, Tensor], list[tuple[Tensor, Tensor]]]:
    train, test = split_parts(what, labels, names, fraction)
    return (images[train], labels[train]), [(images[test], labels[test])]
