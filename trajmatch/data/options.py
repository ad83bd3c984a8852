"""Options behind the path in the address of a data set: ``?classes=cat,dog&size=64``.

Each type has some options as its fields. A reader takes the options of one type, which may inherit
from several.
"""

from __future__ import annotations

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
        classes: Names of the classes wanted, or their numbers; empty: all.
        statistics: ``"published"`` normalises by the constants of the papers' programs,
            ``"pixels"`` by the mean and deviation of the training images; None leaves it to the
            set: the constants for ImageNet's, else the pixels'.
    """

    classes: tuple[str, ...] = ()
    statistics: Literal["published", "pixels"] | None = None


@dataclass(frozen=True, kw_only=True)
class PartOptions(Options):
    """Options of sets whose parts have names.

    Attributes:
        train: Name of the part of the training images.
        test: Name of the part of the test images; or, where there is none, the fraction of each
            class to set aside as test images.
    """

    train: str | None = None
    test: str | None = None

    @property
    def fraction(self) -> float | None:
        """Fraction of each class to set aside as test images; None if none is given."""
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
    """Options of sets of named arrays.

    Attributes:
        targets: ``NAME`` of the arrays ``train_NAME`` and ``test_NAME`` with the targets, where
            networks are to regress them instead of to classify; None: there are none.
    """

    targets: str | None = None


@dataclass(frozen=True, kw_only=True)
class ImageOptions(Options):
    """Options of sets of image files.

    Attributes:
        size: Height and width to resize to, in pixels; None: as the files are.
        exif: ``"turn"`` turns photographs as their EXIF data says; ``"ignore"`` is the default of
            torchvision, as that of the next two.
        alpha: ``"white"`` or ``"black"`` puts transparent images on that background, ``"drop"``
            leaves the alpha channel out.
        bits: ``"scale"`` takes the upper 8 of 16 bits of grey images, ``"clip"`` cuts values above
            255.
        large: ``"allow"`` reads images of more than 179 million pixels, which Pillow refuses.
    """

    size: PositiveInt | None = None
    exif: Literal["ignore", "turn"] = "ignore"
    alpha: Literal["drop", "white", "black"] = "drop"
    bits: Literal["clip", "scale"] = "clip"
    large: Literal["refuse", "allow"] = "refuse"


def parse(text: str, kind: type[Options], what: str) -> Any:
    """Read options.

    Values may be percent-encoded, for class names with a comma or an ampersand.

    Args:
        text: What stands behind the ``?``.
        kind: The options that the source takes.
        what: Name of the source, for messages.

    Returns:
        The options.

    Raises:
        UserError: An option is unknown, given twice, or its value cannot be used.
    """
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
        if name == "classes":
            given = [unquote(entry).strip() for entry in value.split(",")]
        values[name] = setting(given, known[name], f"{what}: {name}", strict=False)
    return kind(**values)


def nearest(given: str, known: Sequence[str]) -> str:
    """List what someone who wrote ``given`` may have meant, for a message.

    Args:
        given: What came.
        known: What there is.

    Returns:
        The names most like it, or the first ones where none is like it.
    """
    folded = {name.casefold(): name for name in reversed(known)}
    close = difflib.get_close_matches(given.casefold(), folded, n=3, cutoff=0.6)
    if close:
        return f"the nearest are {', '.join(folded[name] for name in close)}"
    more = f" and {len(known) - 10} more" if len(known) > 10 else ""
    return f"there are {', '.join(known[:10])}{more}"


def choose_classes(
    what: str, names: Sequence[str], wanted: Sequence[str], others: Sequence[str] = ()
) -> list[int]:
    """Find classes by name or number.

    Args:
        what: Name of the data set, for messages.
        names: Names of all classes, in the order of the labels.
        wanted: Names, or numbers where no class has such a name; empty: all.
        others: Second names of all classes, such as the identifiers of WordNet.

    Returns:
        Their labels, in the order wanted.

    Raises:
        UserError: There is no such class, or one is given twice.
    """
    labels = {str(label): label for label in range(len(names))}
    for each in (others, names):  # a name counts before a second name, and this before a number
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
    """Return a name in the form NFC, in which names are compared: macOS decomposes accents."""
    return unicodedata.normalize("NFC", name)
