"""What can follow the path in the URI of a data set: ``?classes=cat,dog&size=64``."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from trajmatch.errors import UserError


@dataclass(frozen=True)
class Options:
    """Options of a data source; what a source does not take is refused before it is loaded.

    Attributes:
        classes: Names of the classes wanted, or their numbers; empty: all.
        statistics: ``"published"`` normalises by the constants of the papers' programs,
            ``"pixels"`` by the mean and deviation of the training images; None leaves it to the
            set: the constants for ImageNet's, else the pixels'.
        size: Height and width to resize to, in pixels; None: as the files are.
        subset: Name of a published list of classes.
        train: Name of the part of the training images.
        test: Name of the part of the test images; or, where there is none, the fraction of each
            class to set aside as test images.
        config: Name of one of several data sets under one name.
        image: Column of the images.
        label: Column of the labels.
        exif: ``"turn"`` turns photographs as their EXIF data says; ``"ignore"`` is the default of
            torchvision, as that of the next two.
        alpha: ``"white"`` or ``"black"`` puts transparent images on that background, ``"drop"``
            leaves the alpha channel out.
        bits: ``"scale"`` takes the upper 8 of 16 bits of grey images, ``"clip"`` cuts values above
            255.
        large: ``"allow"`` reads images of more than 179 million pixels, which Pillow refuses.
        text: The options as they were given, behind the ``?``.
    """

    classes: tuple[str, ...] = ()
    statistics: str | None = None
    size: int | None = None
    subset: str | None = None
    train: str | None = None
    test: float | str | None = None
    config: str | None = None
    image: str | None = None
    label: str | None = None
    exif: str = "ignore"
    alpha: str = "drop"
    bits: str = "clip"
    large: str = "refuse"
    text: str = ""

    @property
    def fraction(self) -> float | None:
        """Fraction of each class to set aside as test images; None if none is given."""
        return self.test if isinstance(self.test, float) else None


#: Options of all sources that decode image files.
OF_IMAGES = ("size", "exif", "alpha", "bits", "large")

#: Options of every source.
OF_ALL = ("classes", "statistics")

_CHOICES = {
    "statistics": ("published", "pixels"),
    "exif": ("ignore", "turn"),
    "alpha": ("drop", "white", "black"),
    "bits": ("clip", "scale"),
    "large": ("refuse", "allow"),
}


def split(uri: str) -> tuple[str, str]:
    """Split a URI or name into the part before the ``?`` and the options behind it, if any."""
    path, _, text = uri.partition("?")
    return path, text


def parse(text: str, allowed: Collection[str], what: str) -> Options:
    """Reads options.

    Values may be percent-encoded, for class names with a comma or an ampersand.

    Args:
        text: What stands behind the ``?``.
        allowed: Names of the options that the source takes.
        what: Whose options they are, for messages.

    Returns:
        The options.

    Raises:
        UserError: An option is unknown, given twice, or its value cannot be used.
    """
    values: dict[str, object] = {}
    for part in filter(None, text.split("&")):
        name, equals, value = part.partition("=")
        if name not in allowed:
            raise UserError(f"{what} takes no option {name!r}; {_known(name, allowed)}")
        if name in values:
            raise UserError(f"{what}: the option {name} is given twice; give it once")
        if not equals or not value:
            raise UserError(f"{what}: the option {name} has no value; write {name}=...")
        values[name] = _read(what, name, value)
    return Options(**values, text=text)  # type: ignore[arg-type]


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


def _known(name: str, allowed: Collection[str]) -> str:
    return nearest(name, list(allowed)) if allowed else "it takes none"


def _read(what: str, name: str, value: str) -> object:
    if name == "classes":
        return tuple(unquote(entry).strip() for entry in value.split(","))
    text = unquote(value)
    try:
        if name == "size":
            size = int(text)
            if size < 1:
                raise ValueError
            return size
    except ValueError:
        raise UserError(
            f"{what}: size should be a whole number of pixels, but is {text!r:.40}"
        ) from None
    if name == "test":
        try:
            fraction = float(text)
        except ValueError:
            return text  # the name of a part
        if not 0 < fraction < 1:
            raise UserError(
                f"{what}: test should be a number between 0 and 1, or the name of a part, but is "
                f"{text!r}"
            )
        return fraction
    if text not in _CHOICES.get(name, (text,)):
        raise UserError(f"{what}: {name} should be {' or '.join(_CHOICES[name])}, but is {text!r}")
    return text


def choose_classes(
    what: str, names: Sequence[str], wanted: Sequence[str], others: Sequence[str] = ()
) -> list[int]:
    """Find classes by name or number.

    Args:
        what: Whose classes they are, for messages.
        names: Names of all classes, in the order of the labels.
        wanted: Names, or numbers where no class has such a name; empty: all.
        others: Second names of all classes, such as the identifiers of WordNet.

    Returns:
        Their labels, in the order wanted.

    Raises:
        UserError: There is no such class, or one is given twice.
    """
    chosen: list[int] = []
    names, others = (list(map(composed, each)) for each in (names, others))
    for name in map(composed, wanted):
        if name in names:
            index = names.index(name)
        elif name in others:
            index = others.index(name)
        elif name.isdecimal() and len(name) < 10 and int(name) < len(names):
            index = int(name)
        else:
            raise UserError(
                f"{what} has no class {name!r}; {nearest(name, [*names, *others])} "
                f"(or give numbers from 0 to {len(names) - 1})"
            )
        if index in chosen:
            raise UserError(f"{what}: class {names[index]!r} is given twice; give it once")
        chosen.append(index)
    return chosen if wanted else list(range(len(names)))


def composed(name: str) -> str:
    """Return a name in the form NFC, in which names are compared: macOS decomposes accents."""
    return unicodedata.normalize("NFC", name)
