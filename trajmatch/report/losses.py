"""Verdict on the loss of a run, in words."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from trajmatch.distill.terms import TERMS

#: Meanings of a final loss by its upper limit, relative to a student that does not move. In the
#: best CIFAR-10 runs of docs/comparison.md (MTT, FTD and DATM: 17 to 22 points above random real
#: images) the loss ended at 0.42 to 0.55, and in the AST runs (15 to 16 points) at 0.85 to 0.87.
#: In all of these runs it began at 0.76 to 0.97.
_MEANINGS = {
    0.6: "as low as in runs that gained 17 to 22 points on CIFAR-10 (0.42 to 0.55); judge the "
    "result by the accuracy",
    0.9: "the student moves part of the way to the expert. More iterations, a larger --lr-img or "
    "more --student-steps may help; judge by the accuracy",
    0.98: "the student moves a little towards the expert; more iterations may help",
    1 / 0.98: "the student did not move towards the expert. Raise --lr-init or --student-steps, "
    "and check that --lr-img is not far too small",
    math.inf: "the student ends farther from the expert than it started. The step size "
    "(--lr-init, --lr-lr) or --lr-img is too large",
}


def verdict(losses: Sequence[float | None], settings: Mapping[str, Any]) -> str:
    """Explain in one or two sentences how the loss of a run went.

    ``losses`` has a number per iteration, or None if it was not finite. ``settings`` are those of
    the distilled set: ``objective``, ``terms`` and ``expert_epochs``.
    """
    if not (finite := [loss for loss in losses if loss is not None]):
        return "The loss was never finite: nothing was learned."
    # Single losses vary from draw to draw, so compare means of the first and the last tenth.
    tenth = max(1, len(finite) // 10)
    ends = finite[:tenth], finite[-tenth:]
    if "objective" in settings:  # only present for objectives other than matching
        first, last = map(fmean, ends)
        numbers = f"from {first:.4g} to {last:.4g}, means of the first and the last tenth"
        return f"The loss of --objective {settings['objective']} went {numbers}."
    if (unmoved := of_no_step(settings)) is None:
        return "There is no reference value for this loss, because one of its terms is your own."
    # Relative to a student that does not move, losses of different terms have the same meaning.
    first, last = (fmean(part) / unmoved for part in ends)
    relative = f" (relative to {unmoved:g}, the loss of a student that does not move)"
    of_what = "" if unmoved == 1 else relative
    numbers = f"from {first:.2f} to {last:.2f}{of_what}, means of the first and the last tenth"
    scale = "1: the student does not move; 0: it reaches the expert"
    meaning = next(meaning for limit, meaning in _MEANINGS.items() if last <= limit)
    return f"The matching loss went {numbers} ({scale}): {meaning}."


def of_no_step(settings: Mapping[str, Any]) -> float | None:
    """Return the matching loss of a student that stays at its start; None if unknown."""
    names, epochs = settings.get("terms", ["final"]), settings.get("expert_epochs")
    kinds = [str(name).partition(":")[0] for name in names] if isinstance(names, list) else []
    if not (isinstance(epochs, int) and epochs > 0 and {*kinds} <= TERMS.keys()):
        return None
    # A term is a ratio of two distances, which is 1 for a student that does not move. These two
    # terms sum one ratio per intermediate epoch; the second has weights 1/M, 2/M, ... for M epochs.
    sums = {"intermediate": epochs - 1, "intermediate-rising": (epochs - 1) / 2}
    return sum(sums.get(kind, 1) for kind in kinds) or None
