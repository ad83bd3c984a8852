"""Options in the address of a data set, such as ``?classes=cat,dog&size=64``, as dataclasses."""

import difflib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints
from urllib.parse import unquote

from trajmatch.errors import UserError
from trajmatch.schema import PositiveInt, setting


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of every source.

    Attributes:
        classes: Names or numbers of the classes to keep; empty keeps all.
        statistics: ``"published"`` normalises by the papers' constants, ``"pixels"`` by mean and
            std of the training images. None keeps the default of the source: ``"published"`` for
            ImageNet and Tiny ImageNet, ``"pixels"`` for others.
    """

    classes: tuple[str, ...] = ()
    statistics: Literal["published", "pixels"] | None = None


@dataclass(frozen=True, kw_only=True)
class PartOptions(Options):
    """Options of sets with named parts; ``test`` may also be the test fraction of each class."""

    train: str | None = None
    test: str | None = None

    @property
    def fraction(self) -> float | None:
        """Test fraction of each class, or None if ``test`` is not a number."""
        try:
            fraction = float(self.test or "")
        except ValueError:
            return None
        if not 0 < fraction < 1:
            raise UserError(
                "?test= should be a number between 0 and 1, or the name of a part, but is "
                f"{self.test!r}"
            )
        return fraction


@dataclass(frozen=True, kw_only=True)
class ArrayOptions(PartOptions):
    """Options of array sets; ``targets=NAME`` reads targets from ``train_NAME``, ``test_NAME``."""

    targets: str | None = None


@dataclass(frozen=True, kw_only=True)
class ImageOptions(Options):
    """Options of sets of image files; the defaults do what torchvision's image loader does.

    Attributes:
        size: Height and width after resizing, in pixels; None keeps the file's size.
        exif: ``"turn"`` applies the EXIF orientation.
        alpha: ``"drop"`` drops the alpha channel; ``"white"`` and ``"black"`` blend the image with
            a background of that colour.
        bits: ``"scale"`` takes the upper 8 of 16 bits of grey images; ``"clip"`` clips at 255.
        large: ``"allow"`` reads images above Pillow's limit of 179 million pixels.
    """

    size: PositiveInt | None = None
    exif: Literal["ignore", "turn"] = "ignore"
    alpha: Literal["drop", "white", "black"] = "drop"
    bits: Literal["clip", "scale"] = "clip"
    large: Literal["refuse", "allow"] = "refuse"


def parse(text: str, kind: type[Options], what: str) -> Any:
    """Parse the text after ``?`` into a ``kind``; raise UserError if an option is invalid."""
    known = get_type_hints(kind, include_extras=True)
    values: dict[str, Any] = {}
    for part in filter(None, text.split("&")):
        name, _, value = part.partition("=")
        if name not in known:
            raise UserError(f"{what} takes no option {name!r}; {nearest(name, list(known))}")
        if name in values:
            raise UserError(f"{what}: the option {name} is given twice; give it once")
        if not value:
            raise UserError(f"{what}: the option {name} has no value; write {name}=...")
        given: Any = unquote(value)
        # Values are percent-encoded. Split before decoding: an encoded comma is part of a name.
        if name == "classes":
            given = [unquote(entry).strip() for entry in value.split(",")]
        values[name] = setting(given, known[name], f"{what}: {name}", strict=False)
    return kind(**values)


def nearest(given: str, known: Sequence[str]) -> str:
    """Return a hint for a message: the names most similar to ``given``, or the first ten."""
    folded = {name.casefold(): name for name in reversed(known)}
    if close := difflib.get_close_matches(given.casefold(), folded, n=3, cutoff=0.6):
        return f"the nearest are {', '.join(folded[name] for name in close)}"
    more = f" and {len(known) - 10} more" if len(known) > 10 else ""
    return f"there are {', '.join(known[:10])}{more}"


def choose_classes(
    what: str, names: Sequence[str], wanted: Sequence[str], others: Sequence[str] = ()
) -> list[int]:
    """Return the labels of the ``wanted`` classes, in that order; all if ``wanted`` is empty.

    A class is given by name, by its alternative name in ``others`` (e.g. WordNet id), or by number,
    in this order of precedence. Raises UserError if a class is unknown or repeated.
    """
    labels = {str(label): label for label in range(len(names))}
    # Later keys overwrite earlier ones, so names come last. Each list is reversed, so that the
    # first of equal names wins.
    for each in (others, names):
        labels |= {composed(name): label for label, name in reversed([*enumerate(each)])}
    chosen: list[int] = []
    for name in map(composed, wanted):
        if name not in labels:
            raise UserError(
                f"{what} has no class {name!r}; {nearest(name, [*names, *others])} "
                f"(or give numbers from 0 to {len(names) - 1})"
            )
        if labels[name] in chosen:
            raise UserError(f"{what}: class {names[labels[name]]!r} is given twice; give it once")
        chosen.append(labels[name])
    return chosen if wanted else list(range(len(names)))


def composed(name: str) -> str:
    """Return a name in Unicode form NFC, for comparisons; macOS decomposes accents in names."""
    return unicodedata.normalize("NFC", name)
