"""Balance of the student's loss over start epochs (AST)."""

from __future__ import annotations

import math


def balance(start_epoch: int, max_start_epoch: int) -> float:
    """Return ``kappa(s)``, the factor of the student's loss (AST, balanced inner-loop loss).

    ``log_5(s - h + 8)`` for ``s >= h = floor(S_max / 2)``, else ``1 / log_5(h - s + 8)``: smaller
    steps at early start epochs, larger ones at late. Base, offset and the jump at ``h`` are those
    of the authors' code. Scaling every gradient of a match is the same as scaling the step size.
    """
    beyond = start_epoch - max_start_epoch // 2
    kappa = math.log(abs(beyond) + 8, 5)
    return kappa if beyond >= 0 else 1 / kappa
