"""Signs that experts are not worth matching, from what their training recorded.

A segment is matched well where experts move and their loss falls. What is looked for here has cost
users days: experts that stand still, that ended worse than they began or near chance, and start
epochs from which the loss falls no more.
"""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any

from trajmatch.experts.config import spans
from trajmatch.experts.store import Store

#: An epoch's displacement below this share of the expert's largest one is standing still.
STILL = 1e-3
#: An expert whose test accuracy is nearer than this share of the way from chance to 100 % has
#: learned next to nothing.
LEARNED = 0.1


def examine(store: Store) -> list[str]:
    """What is wrong with the experts of a store.

    Args:
        store: With all its experts.

    Returns:
        One sentence for each sign, with the experts that show it; empty for healthy ones.
    """
    classes = len(store.manifest["dataset"]["class_names"])
    chance = 100 / max(1, classes)
    least = chance + LEARNED * (100 - chance)
    still, diverged, untrained = [], [], []
    for expert in range(store.num_experts):
        metrics = store.metrics(expert)
        losses, moved = _numbers(metrics, "train_loss"), _numbers(metrics, "displacement")
        if moved and min(moved) <= STILL * max(moved):
            still.append(expert)
        if losses and losses[-1] > max(losses[0], math.log(classes)):
            diverged.append(expert)
        elif metrics.get("test_accuracy", 100.0) < least:
            untrained.append(expert)
    found = []
    if still:
        found.append(
            f"{_experts(still)} moved in some epoch less than {STILL:g} of what it moved in "
            "another: segments from there have nothing to match; raise --lr of `trajmatch expert`"
        )
    if diverged:
        found.append(
            f"{_experts(diverged)} ended with a larger training loss than it began with; lower "
            "--lr of `trajmatch expert`"
        )
    if untrained:
        found.append(
            f"{_experts(untrained)} reached less than {least:.1f} % test accuracy ({chance:.1f} % "
            "is chance); train for more epochs or raise --lr of `trajmatch expert`"
        )
    return found


def examine_window(
    store: Store, min_start_epoch: int, max_start_epoch: int, expert_epochs: int
) -> list[str]:
    """Which start epochs begin where the experts' loss falls no more.

    Args:
        store: With all its experts.
        min_start_epoch: First start epoch s.
        max_start_epoch: End of the start epochs, itself none.
        expert_epochs: M, epochs of a segment.

    Returns:
        A sentence, or nothing.
    """
    losses = [_numbers(store.metrics(expert), "train_loss") for expert in range(store.num_experts)]
    shortest = min(map(len, losses), default=0)
    stale = [
        start
        for start in range(min_start_epoch, max_start_epoch)
        if start + expert_epochs <= shortest
        # Epoch e has its mean loss at e - 1. Before the first one there is none to compare with.
        and fmean(each[start + expert_epochs - 1] for each in losses)
        >= fmean(each[max(0, start - 1)] for each in losses)
        and start + expert_epochs > 1
    ]
    if not stale:
        return []
    return [
        f"from start epochs {spans(stale)}, the experts' training loss does not fall over the "
        f"{expert_epochs} epochs to match, so there is little to learn from these segments; lower "
        "--max-start-epoch, or train the experts with another --lr"
    ]


def _numbers(metrics: dict[str, Any], name: str) -> list[float]:
    values = metrics.get(name, [])
    return [float(value) for value in values]


def _experts(numbers: list[int]) -> str:
    return f"expert{'s' if len(numbers) > 1 else ''} {spans(numbers)}"
