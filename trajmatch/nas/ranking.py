"""How far one ranking is another: Spearman's correlation, also among the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation; equal values share the mean of their ranks.

    Args:
        first: One value for each thing that is ranked.
        second: Another one.

    Returns:
        From -1 to 1; None where it is not defined: for fewer than two values, or all equal ones.
    """
    from scipy.stats import spearmanr

    if len({*first}) < 2 or len({*second}) < 2:
        return None
    return float(spearmanr(first, second).statistic)


def rank_correlations(
    real: Mapping[str, float],
    proxy: Mapping[str, float],
    top: Sequence[int],
    top_by: Literal["real", "proxy"] = "real",
) -> dict[str, float | None]:
    """Spearman's correlation of two accuracies, of all architectures and of the best.

    FTD reports it for the best 5, 10 and 20 and does not say by which ranking they are the best.

    Args:
        real: Accuracy on the real data, by name.
        proxy: Accuracy on the proxy, of the same names.
        top: How many of the best.
        top_by: Whose ranking says which are the best; of equals those named first.

    Returns:
        By ``"5"`` and so on, and ``"all"``; None where there are fewer architectures, or where the
        correlation is not defined (:func:`spearman`).
    """
    ranking = real if top_by == "real" else proxy
    best = sorted(ranking, key=lambda name: -ranking[name])

    def among(names: Sequence[str]) -> float | None:
        return spearman([real[name] for name in names], [proxy[name] for name in names])

    found = {str(k): among(best[:k]) if k <= len(best) else None for k in top}
    return {**found, "all": among(best)}
