"""Data sets of the Hugging Face hub, through the optional package ``datasets``."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trajmatch.data import decode
from trajmatch.data.dataset import Dataset
from trajmatch.data.folder import TEST_FRACTION, say_split, stratified_split
from trajmatch.data.options import Options, choose_classes, nearest
from trajmatch.errors import UserError

_TEST_SPLITS = ("test", "validation", "valid", "val")


def load(path: Path, options: Options) -> Dataset:
    """Loads a data set by its name on the hub, or from a folder that ``datasets`` can read.

    The columns are found by their type: the one ``Image``, and the one ``ClassLabel``. Of the
    splits, ``train`` is used and the first of ``test``, ``validation``, ``valid``, ``val``; without
    one, a part of each class becomes the test set, which is said. No code of the data set is run.

    Args:
        path: What ``datasets.load_dataset`` takes: ``USER/NAME``, or a folder.
        options: ``classes``, ``size``, ``test``, ``config`` (one of several sets under the name),
            ``image`` and ``label`` (columns) count.

    Returns:
        The data set, named after the last part of the name; grey where all images are, else RGB.

    Raises:
        UserError: The package is not installed, or the data set cannot be loaded or used.
    """
    name = path.as_posix()
    what = f"hf:{name}"
    splits = _load(what, name, options.config)
    if "train" not in splits:
        raise UserError(f"{what} has no split 'train', but {', '.join(splits) or 'none'}")
    features = splits["train"].features
    image, label = (
        _column(what, features, kind, option, given)
        for kind, option, given in (
            ("Image", "image", options.image),
            ("ClassLabel", "label", options.label),
        )
    )
    all_names = list(features[label].names)
    chosen = choose_classes(what, all_names, options.classes)
    names = [all_names[index] for index in chosen]
    test_split = next((split for split in _TEST_SPLITS if split in splits), None)
    if test_split is not None and options.test is not None:
        raise UserError(
            f"{what} has test images of its own, the split {test_split!r}; leave out "
            f"?test={options.test:g}"
        )
    rows = [
        _Rows(f"{what}, split {split}", splits[split], image, label, chosen)
        for split in ("train", *filter(None, [test_split]))
    ]
    size, colour = _shape(rows, options.size)
    train, *rest = [part.decode(size, colour=colour) for part in rows]
    test = rest[0] if rest else None
    if test is None:
        train, test = _split(what, *train, names, options.test)
    return Dataset.from_arrays(path.name, *train, *test, names)


class _Rows:
    """Rows of one split that have a class wanted."""

    def __init__(self, what: str, split: Any, image: str, label: str, chosen: list[int]) -> None:
        self.what = what
        self._split, self._image = split, image
        new = {old: index for index, old in enumerate(chosen)}
        given = [-1 if value is None else int(value) for value in split[label]]
        self._rows = [row for row, value in enumerate(given) if value in new]
        self._labels = torch.tensor([new[given[row]] for row in self._rows], dtype=torch.int64)

    def images(self) -> Iterable[tuple[str, Any]]:
        """Name, for messages, and image (of Pillow) of each row."""
        for row in self._rows:
            image = self._split[row][self._image]
            if image is None:
                raise UserError(f"{self.what}, row {row} has no image; leave its class out")
            yield f"{self.what}, row {row}", image

    def decode(self, size: int, *, colour: bool) -> tuple[Tensor, Tensor]:
        """Images ``[N, C, size, size]``, uint8, and labels ``[N]``."""
        images = decode.empty_images(len(self._rows), size, colour=colour)
        for index, (name, image) in enumerate(self.images()):
            images[index] = decode.to_array(name, image, size, colour=colour)
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


def _column(
    what: str, features: Mapping[str, Any], kind: str, option: str, given: str | None
) -> str:
    """Name of the one column of a type, or of the one that was given."""
    of_kind = [name for name, feature in features.items() if type(feature).__name__ == kind]
    if given is not None:
        if given not in of_kind:
            hint = nearest(given, of_kind) if of_kind else "it has none"
            raise UserError(f"{what} has no column {given!r} of type {kind}; {hint}")
        return given
    if len(of_kind) != 1:
        columns = ", ".join(f"{n} ({type(f).__name__})" for n, f in features.items())
        raise UserError(
            f"{what} has {len(of_kind)} columns of type {kind} (its columns: {columns}); "
            + (f"choose one with ?{option}=NAME" if of_kind else "it cannot be used")
        )
    return of_kind[0]


def _shape(parts: list[_Rows], size: int | None) -> tuple[int, bool]:
    """Side of all images in pixels, and whether any has colour."""
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
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    train, test = stratified_split(
        what, labels, names, TEST_FRACTION if fraction is None else fraction
    )
    if fraction is None:
        say_split(what, len(test), len(labels))
    return (images[train], labels[train]), (images[test], labels[test])
