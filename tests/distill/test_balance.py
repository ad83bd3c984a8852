"""kappa(s) against the values that the formula gives by hand."""

import math

import pytest

from trajmatch.distill.objectives.start import balance


@pytest.mark.parametrize(
    ("start_epoch", "max_start_epoch", "kappa"),
    [
        # h = 10: 1 / log_5 18, 1 / log_5 9, log_5 8, log_5 17
        (0, 20, 0.5568),
        (9, 20, 0.7325),
        (10, 20, 1.2920),
        (19, 20, 1.7604),
        (0, 40, 0.4830),
        (39, 40, 2.0478),
        (0, 1, 1.2920),
        (2, 5, 1.2920),  # h = floor(5 / 2)
    ],
)
def test_values(start_epoch: int, max_start_epoch: int, kappa: float) -> None:
    assert balance(start_epoch, max_start_epoch) == pytest.approx(kappa, abs=5e-5)


def test_it_rises_with_the_start_epoch() -> None:
    values = [balance(s, 31) for s in range(31)]
    assert values == sorted(values)
    assert all(math.isfinite(value) and value > 0 for value in values)
