"""The parts of a data set, training and test images, by their usual names."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from trajmatch.data.options import PartOptions, composed, nearest
from trajmatch.errors import UserError
from trajmatch.random import generator

#: Part of each class that becomes the test set where there is none and nothing else is said.
TEST_FRACTION = 0.25

TRAIN = ("train", "training")
#: In the order of preference.
TEST = ("test", "testing", "validation", "valid", "val")


def find_parts(
    what: str, present: Sequence[str], options: PartOptions
) -> tuple[str | None, str | None]:
    """Choose the parts of the training and of the test images, in any case.

    Args:
        what: Name of the data set, for messages.
        present: Names of all parts.
        options: ``train`` and ``test`` count.

    Returns:
        Names of the two; None for a part that is not there.

    Raises:
        UserError: A part that the options name is not there, or there are test images beside the
            fraction that the options ask for.
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
    """Warn of parts that are not read, if there are any and the options do not choose.

    Args:
        what: Name of the data set.
        names: Their names.
        options: ``train`` and ``test`` count.
    """
    chosen = options.train or (options.test and options.fraction is None)
    if not chosen and (listed := ", ".join(map(repr, names))):
        warnings.warn(
            f"{what}: {listed} is left out; ?train=NAME and ?test=NAME choose the parts that are "
            "read",
            stacklevel=2,
        )


def split_parts(
    what: str, labels: Tensor, names: Sequence[str], fraction: float | None
) -> tuple[Tensor, Tensor]:
    """Set a part of each class aside as test images, always the same ones, and say so.

    Each class has an image on both sides at least.

    Args:
        what: Name of the data set, for messages.
        labels: ``[N]``, int64.
        names: Names of the classes.
        fraction: Part of each class to set aside, between 0 and 1; None takes
            :data:`TEST_FRACTION`, with a warning.

    Returns:
        ``(train, test)``: indices into ``labels``, int64, each in ascending order.

    Raises:
        UserError: A class has a single image.
    """
    part = TEST_FRACTION if fraction is None else fraction
    told = f"{what} has no test images, and to take {part:g} of the others"
    train, test = _draw(told, labels, names, part, 0, "test split", 1)
    if fraction is None:
        warnings.warn(
            f"{what} has no test images: {len(test)} of its {len(labels)} images, the same "
            "ones every time, are used for testing and not for training; ?test=FRACTION sets "
            f"another part than {TEST_FRACTION:g} aside",
            stacklevel=2,
        )
    return train, test


def split_holdout(
    labels: Tensor, names: Sequence[str], fraction: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Draw the same fraction of every class at random.

    Args:
        labels: ``[N]``, int64, from 0 to the number of classes less one.
        names: Names of the classes.
        fraction: Part of each class to draw, from 0 to below 1, rounded to whole images.
        seed: Chooses the draw.

    Returns:
        ``(kept, held_out)``: indices into ``labels``, int64, each in ascending order.

    Raises:
        UserError: The fraction is out of range, or a class is too small to have an image on both
            sides.
    """
    if not 0 <= fraction < 1:
        raise UserError(
            f"the fraction to hold out should be at least 0 and less than 1, but is {fraction}"
        )
    return _draw(f"--holdout {fraction:g}", labels, names, fraction, seed, "holdout", 0)


def _draw(
    told: str, labels: Tensor, names: Sequence[str], part: float, seed: int, stream: str, least: int
) -> tuple[Tensor, Tensor]:
    """Indices of what stays and of what is drawn, in ascending order.

    Each class has a random stream of its own, so what is drawn from one does not depend on the
    others. At least ``least`` images of a class are drawn, and stay.
    """
    drawn = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        members = torch.nonzero(labels == label).flatten()
        count = min(max(round(part * len(members)), least), len(members) - least)
        if part and not 0 < count < len(members):
            raise UserError(
                f"{told} would put {count} of the {len(members)} images of class {names[label]!r} "
                "aside; each class needs an image on both sides: choose another fraction, add "
                "images, or leave the class out"
            )
        order = torch.randperm(len(members), generator=generator(seed, stream, label))
        drawn[members[order[:count]]] = True
    return torch.nonzero(~drawn).flatten(), torch.nonzero(drawn).flatten()


def _part(
    what: str, present: Sequence[str], option: str, given: str | None, usual: Sequence[str]
) -> str | None:
    """Name of the part that is given, or of the first one with a usual name."""
    names = {composed(each).casefold(): each for each in reversed(present)}
    names |= {composed(each): each for each in reversed(present)}
    for name in map(composed, usual if given is None else (given,)):
        if match := names.get(name, names.get(name.casefold())):
            return match
    if given is not None:
        hint = nearest(given, present) if present else "there are none"
        raise UserError(f"{what} has no part {given!r}, which ?{option}= names; {hint}")
    return None
