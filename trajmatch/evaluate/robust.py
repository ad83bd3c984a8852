"""Robust scores of DD-Ranking, in which neither soft labels nor augmentation count.

Li et al., *DD-Ranking: Rethinking the Evaluation of Dataset Distillation*, arXiv:2505.13300, with
both weights 0.5, as on its leaderboard.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from trajmatch.evaluate.scores import Score


def robust_score(first: float, second: float) -> float:
    """Return the robust score, 0 to 1 (higher is better), of two accuracy differences in percent.

    ``(e^a - e^-1) / (e - e^-1)`` with ``a`` the mean of the two as a fraction. The two are the
    improvement over random images and, for the label-robust score, minus the hard label recovery;
    for the augmentation-robust score, the improvement without augmentation.
    """
    mean = (first + second) / 200
    return (math.exp(mean) - math.exp(-1)) / (math.e - math.exp(-1))


def robust_scores(
    found: Mapping[str, Score], soft: bool, whole_real: float | None = None
) -> dict[str, Any] | None:
    """Compute both scores for each network, from the scores by training set.

    ``whole_real`` is the accuracy with the whole real set in percent; None: that in ``found``.
    Returns the differences (in points) and scores by name, each with ``mean`` and population
    ``std`` over the networks; None if a set has no network yet.
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
