"""Scores of DD-Ranking, in which neither soft labels nor augmentation count as distillation.

Definitions: Li et al., *DD-Ranking: Rethinking the Evaluation of Dataset Distillation*,
arXiv:2505.13300, with both weights 0.5, as on its leaderboard.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from trajmatch.evaluate.scores import Score


def robust_score(first: float, second: float) -> float:
    """Return the robust score of two differences of accuracies.

    For the label-robust score these are the improvement over random images and, as a loss, the hard
    label recovery with the opposite sign; for the augmentation-robust score the improvements over
    random images with and without augmentation.

    Args:
        first: In percent.
        second: In percent.

    Returns:
        ``(e^a - e^-1) / (e - e^-1)`` with ``a`` the mean of the two as fractions: from 0 to 1, more
        is better.
    """
    mean = (first + second) / 200
    return (math.exp(mean) - math.exp(-1)) / (math.e - math.exp(-1))


def robust_scores(
    found: Mapping[str, Score], soft: bool, whole_real: float | None = None
) -> dict[str, Any] | None:
    """Compute both scores for each network of an evaluation.

    Args:
        found: Scores by the set that networks were trained on.
        soft: True for a distilled set with soft labels.
        whole_real: Accuracy with the whole real set in percent; None: that in ``found``.

    Returns:
        ``hard_label_recovery``, ``improvement_over_random``, ``improvement_without_augmentation``
        (in points), ``label_robust_score`` and ``augmentation_robust_score``, each with ``mean``
        and ``std`` (of the population) over the networks. None: a set has no network yet.
    """
    of = {name: score.accuracies for name, score in found.items()}
    if whole_real is not None:
        of["whole_real"] = (whole_real,) * len(of["distilled"])
    hard, random = ("distilled_hard", "random_real_soft") if soft else ("distilled", "random_real")
    names = ("whole_real", hard, "distilled", random, "distilled_plain", "random_real_plain")
    if not of.keys() >= {*names}:
        return None
    columns: defaultdict[str, list[float]] = defaultdict(list)
    for network in zip(*map(of.__getitem__, names), strict=False):
        whole, by_hard, own, by_random, plain, random_plain = network
        recovery, improvement, without = whole - by_hard, own - by_random, plain - random_plain
        columns["hard_label_recovery"].append(recovery)
        columns["improvement_over_random"].append(improvement)
        columns["improvement_without_augmentation"].append(without)
        columns["label_robust_score"].append(robust_score(improvement, -recovery))
        columns["augmentation_robust_score"].append(robust_score(improvement, without))
    return {
        name: {"mean": statistics.fmean(each), "std": statistics.pstdev(each)}
        for name, each in columns.items()
    }
