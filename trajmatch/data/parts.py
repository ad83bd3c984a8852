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

    Each class has a random stream of its own, and has an image on both sides at least.

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
    test = torch.zeros(len(labels), dtype=torch.bool)
    for label, name in enumerate(names):
        members = torch.nonzero(labels == label).flatten()
        if len(members) == 1:
            raise UserError(
                f"{what} has no test images, and class {name!r} a single image, which cannot be "
                "split into training and test; add images, or leave the class out"
            )
        count = min(max(round(part * len(members)), 1), len(members) - 1)
        if count > 0:
            order = torch.randperm(len(members), generator=generator(0, "test split", label))
            test[members[order[:count]]] = True
    if fraction is None:
        warnings.warn(
            f"{what} has no test images: {int(test.sum())} of its {len(labels)} images, the same "
            "ones every time, are used for testing and not for training; ?test=FRACTION sets "
            f"another part than {TEST_FRACTION:g} aside",
            stacklevel=2,
        )
    return torch.nonzero(~test).flatten(), torch.nonzero(test).flatten()


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
