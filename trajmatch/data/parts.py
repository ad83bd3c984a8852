"""Training and test parts of a data set, found by their usual names or drawn at random."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from trajmatch.data.options import PartOptions, composed, nearest
from trajmatch.errors import UserError, warn
from trajmatch.random import generator

#: Default test fraction of each class, for sets without a test part.
TEST_FRACTION = 0.25

TRAIN = ("train", "training")
#: Usual names of the test part, in order of preference.
TEST = ("test", "testing", "validation", "valid", "val")


def find_parts(
    what: str, present: Sequence[str], options: PartOptions
) -> tuple[str | None, str | None]:
    """Return the names of the training and test parts, or None for a missing part.

    Names match case-insensitively. Raises UserError if a part named in ``options`` is missing, or
    if the options give a test fraction although the set has a test part.
    """
    fraction = options.fraction
    train = _part(what, present, "train", options.train, TRAIN)
    named = options.test if fraction is None else None
    test = _part(what, [each for each in present if each != train], "test", named, TEST)
    if test is not None and fraction is not None:
        raise UserError(
            f"{what} has test images of its own, in {test}; leave out ?test={fraction:g}"
        )
    return train, test


def say_left_out(what: str, names: Iterable[str], options: PartOptions) -> None:
    """Warn about parts that are not read, unless the options choose the parts."""
    chosen = options.train or (options.test and options.fraction is None)
    if not chosen and (listed := ", ".join(map(repr, names))):
        warn(
            f"{what}: not read: {listed}; ?train=NAME and ?test=NAME choose the parts that are read"
        )


def split_parts(
    what: str, labels: Tensor, names: Sequence[str], fraction: float | None
) -> tuple[Tensor, Tensor]:
    """Draw ``fraction`` of every class as the test set; None draws a quarter and warns.

    Returns ``(train, test)``, ascending int64 indices into ``labels [N]``. Every class has at least
    one training and one test image; a class with a single image raises UserError.
    """
    part = TEST_FRACTION if fraction is None else fraction
    told = f"{what} has no test images, and a test fraction of {part:g}"
    # The seed is always 0, so that all runs have the same test set.
    train, test = _draw(told, labels, names, part, 0, "test split", 1)
    if fraction is None:
        warn(
            f"{what} has no test images: the same {len(test)} of its {len(labels)} images are "
            "always used for testing and never for training; ?test=FRACTION chooses another "
            f"fraction than {TEST_FRACTION:g}"
        )
    return train, test


def split_holdout(
    labels: Tensor, names: Sequence[str], fraction: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Draw ``fraction`` of every class; return ascending indices ``(kept, held_out)``.

    Raises UserError if the fraction is not in [0, 1), or if a class would have no kept or no
    held-out image.
    """
    if not 0 <= fraction < 1:
        raise UserError(
            f"the fraction to hold out should be at least 0 and less than 1, but is {fraction}"
        )
    return _draw(f"--holdout {fraction:g}", labels, names, fraction, seed, "holdout", 0)


def _draw(
    told: str, labels: Tensor, names: Sequence[str], part: float, seed: int, stream: str, least: int
) -> tuple[Tensor, Tensor]:
    """Draw the fraction ``part`` of every class; return ascending indices ``(kept, drawn)``."""
    drawn = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        members = torch.nonzero(labels == label).flatten()
        # With ``least`` = 1, both sides get at least one image. With 0, it is an error if rounding
        # leaves a side empty.
        count = min(max(round(part * len(members)), least), len(members) - least)
        if part and not 0 < count < len(members):
            raise UserError(
                f"{told} would hold out {count} of the {len(members)} images of class "
                f"{names[label]!r}; each class needs at least one image in both parts: choose "
                "another fraction, add images, or leave the class out"
            )
        # One random stream per class: the draw does not depend on the other classes.
        order = torch.randperm(len(members), generator=generator(seed, stream, label))
        drawn[members[order[:count]]] = True
    return torch.nonzero(~drawn).flatten(), torch.nonzero(drawn).flatten()


def _part(
    what: str, present: Sequence[str], option: str, given: str | None, usual: Sequence[str]
) -> str | None:
    """Return the part ``given`` or, if that is None, the first part with a usual name, or None."""
    # An exact match wins over one in another case. ``reversed`` lets the first of equal keys win.
    names = {composed(each).casefold(): each for each in reversed(present)}
    names |= {composed(each): each for each in reversed(present)}
    for name in map(composed, usual if given is None else (given,)):
        if match := names.get(name, names.get(name.casefold())):
            return match
    if given is not None:
        hint = nearest(given, present) if present else "there are none"
        raise UserError(f"{what} has no part {given!r}, which ?{option}= names; {hint}")
    return None
