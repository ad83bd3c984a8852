"""The meaning of a run's loss, in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from trajmatch.distill.terms import TERMS

#: Meanings of a loss up to a limit. At the end of the runs of docs/comparison.md that gained most
#: (17 to 22 points over random real images of CIFAR-10, MTT, FTD and DATM) the loss was 0.42 to
#: 0.55 of that of a student that stays where it starts; after those of AST, which gained 15, 0.85.
#: All began at 0.76 to 0.97.
_MEANINGS = {
    0.6: "as low as in runs that gained 17 to 22 points on CIFAR-10 (0.42 to 0.55); whether it "
    "helped is for the accuracy to say",
    0.9: "the student goes a part of the way. More iterations, a larger --lr-img or more "
    "--student-steps may help; judge by the accuracy",
    0.98: "the student moves a little towards the expert; more iterations may help",
    1 / 0.98: "the student did not move towards the expert. Raise --lr-init or --student-steps, "
    "and see that --lr-img is not far too small",
    math.inf: "the student ends farther from the expert than it started. Its step size is too "
    "large (--lr-init, --lr-lr), or --lr-img is",
}


def verdict(losses: Sequence[float | None], settings: Mapping[str, Any]) -> str:
    """Say what the loss of a run means.

    Args:
        losses: Loss of each iteration; None where it was not finite.
        settings: Of the distilled set: ``objective``, ``terms`` and ``expert_epochs``.

    Returns:
        A sentence or two.
    """
    finite = [loss for loss in losses if loss is not None]
    if not finite:
        return "The loss was never finite: nothing was learned."
    tenth = max(1, len(finite) // 10)
    ends = finite[:tenth], finite[-tenth:]
    if "objective" in settings:  # another than matching
        first, last = map(fmean, ends)
        numbers = f"from {first:.4g} to {last:.4g}, means of the first and the last tenth"
        return f"The loss of --objective {settings['objective']} went {numbers}."
    unmoved = of_no_step(settings)
    if unmoved is None:
        return "What a good matching loss is depends on its terms, and one of them is your own."
    first, last = (fmean(part) / unmoved for part in ends)
    of_what = "" if unmoved == 1 else f" (as a part of {unmoved:g}, for its terms)"
    numbers = f"from {first:.2f} to {last:.2f}{of_what}, means of the first and the last tenth"
    scale = "1 would be a student that stays where it starts, 0 one that ends where the expert did"
    meaning = next(meaning for limit, meaning in _MEANINGS.items() if last <= limit)
    return f"The matching loss went {numbers} ({scale}): {meaning}."


def of_no_step(settings: Mapping[str, Any]) -> float | None:
    """Return the matching loss of a student that stays where it starts; None if it is unknown."""
    names, epochs = settings.get("terms", ["final"]), settings.get("expert_epochs")
    kinds = [str(name).partition(":")[0] for name in names] if isinstance(names, list) else []
    if not (isinstance(epochs, int) and epochs > 0 and {*kinds} <= TERMS.keys()):
        return None
    # Terms are one ratio each, of two distances that are the same here; these are one for each
    # epoch in between, in the second with weights from 1/M on.
    sums = {"intermediate": epochs - 1, "intermediate-rising": (epochs - 1) / 2}
    return sum(sums.get(kind, 1) for kind in kinds) or None
