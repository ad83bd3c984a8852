import math

import pytest

from trajmatch.distill.step_size import StepSize


def test_raw_is_sgd_with_momentum() -> None:
    one = StepSize(0.01).updated(2.0, lr=1e-3, momentum=0.5, parametrisation="raw")
    assert one == StepSize(pytest.approx(0.008, rel=1e-15), 2.0)
    two = one.updated(-4.0, lr=1e-3, momentum=0.5, parametrisation="raw")
    assert two == StepSize(pytest.approx(0.011, rel=1e-14), -3.0)


def test_exp_values() -> None:
    one = StepSize(0.01).updated(2.0, lr=1e-3, momentum=0.5, parametrisation="exp")
    assert one == StepSize(pytest.approx(0.01 * math.exp(-0.2), rel=1e-15), 2.0)
    two = one.updated(-4.0, lr=1e-3, momentum=0.5, parametrisation="exp")
    assert two.buffer == -3.0
    assert two.value == pytest.approx(one.value * math.exp(3e-3 / one.value), rel=1e-15)


@pytest.mark.parametrize("lr", [1e-6, 1e-7])
def test_both_agree_to_first_order(lr: float) -> None:
    exp, raw = (
        StepSize(0.02, buffer=1.0).updated(3.0, lr, 0.5, which).value for which in ("exp", "raw")
    )
    change = 3.5 * lr
    assert raw == pytest.approx(0.02 - change, rel=1e-15)
    assert exp - raw == pytest.approx(change**2 / (2 * 0.02), rel=1e-3)


def test_exp_stays_positive_where_raw_does_not() -> None:
    step = StepSize(0.01)
    assert step.updated(100.0, 1e-3, 0.5, "raw").value < 0
    assert step.updated(100.0, 1e-3, 0.5, "exp").value > 0


def test_too_large_for_a_number_is_infinite() -> None:
    assert StepSize(1e-3).updated(-1e9, 1.0, 0.5, "exp").value == math.inf


def test_an_update_smaller_than_single_precision_is_kept() -> None:
    step = StepSize(0.01)
    for _ in range(10):
        step = step.updated(1.0, 1e-12, 0.0, "exp")
    assert step.value == pytest.approx(0.01 - 1e-11, rel=1e-13)
