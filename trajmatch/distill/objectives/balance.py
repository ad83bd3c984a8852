"""AST's balance of the student's loss over start epochs."""

from __future__ import annotations

import math


def balance(start_epoch: int, max_start_epoch: int) -> float:
    """Return the factor ``kappa(s)`` of the student's loss (AST, balanced inner-loop loss).

    With ``h = floor(S_max / 2)`` it is ``log_5(s - h + 8)`` for ``s >= h`` and
    ``1 / log_5(h - s + 8)`` below, so that students take smaller steps early in training and larger
    ones late. It multiplies every gradient of a match alike, which is the same as multiplying the
    step size. Base 5 and offset 8 are those of the authors' code, and so is the jump at ``h``.

    Args:
        start_epoch: ``s``.
        max_start_epoch: ``S_max``, the end of the start epochs.

    Returns:
        ``kappa``, positive.
    """
    beyond = start_epoch - max_start_epoch // 2
    kappa = math.log(abs(beyond) + 8, 5)
    return kappa if beyond >= 0 else 1 / kappa
