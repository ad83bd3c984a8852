"""Spearman's correlation, of all and of the best."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from trajmatch.nas import rank_correlations, spearman


def test_known_ranks() -> None:
    # One minus six times the sum of squared differences of ranks, by n (n^2 - 1).
    assert spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(1 - 6 * 4 / (5 * 24))
    assert spearman([1, 2, 3], [30, 20, 10]) == pytest.approx(-1)


def test_equal_values_share_their_ranks() -> None:
    first, second = [3.0, 3.0, 1.0, 5.0, 0.0], [1.0, 2.0, 2.0, 7.0, 2.0]
    ranks = (stats.rankdata(each) for each in (first, second))
    assert spearman(first, second) == pytest.approx(stats.pearsonr(*ranks).statistic)


@pytest.mark.parametrize("values", [[], [1.0], [2.0, 2.0, 2.0]])
def test_not_defined(values: list[float]) -> None:
    assert spearman(values, [float(i) for i in range(len(values))]) is None


@pytest.mark.parametrize("top_by", ["real", "proxy"])
def test_among_the_best(top_by: str) -> None:
    draw = torch.Generator().manual_seed(0)
    real, proxy = ([*map(float, torch.rand(30, generator=draw))] for _ in range(2))
    names = [f"network {i}" for i in range(30)]
    by_name = dict(zip(names, real, strict=True)), dict(zip(names, proxy, strict=True))
    found = rank_correlations(*by_name, (5, 10, 31), top_by)  # type: ignore[arg-type]
    assert found.keys() == {"5", "10", "31", "all"}
    assert found["31"] is None
    ranking = real if top_by == "real" else proxy
    for key, k in (("5", 5), ("10", 10), ("all", 30)):
        best = sorted(range(30), key=lambda i: ranking[i])[-k:]
        wanted = stats.spearmanr([real[i] for i in best], [proxy[i] for i in best]).statistic
        assert found[key] == pytest.approx(wanted)
