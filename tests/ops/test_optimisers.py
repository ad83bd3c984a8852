"""Optimisers of the unrolled loop."""

from __future__ import annotations

from typing import Any

import pytest

from trajmatch import ops


@pytest.mark.parametrize(
    ("kind", "settings", "match"),
    [
        (ops.SGD, {"momentum": -0.1}, "SGD: expected momentum to be at least 0, but got -0.1"),
        (ops.SGD, {"nesterov": True}, "momentum to be above 0 with nesterov, but got 0.0"),
        (ops.SGD, {"weight_decay": float("nan")}, "weight_decay to be at least 0, but got nan"),
        (ops.Adam, {"betas": (0.9, 1.0)}, r"Adam: expected betas to be two numbers in \[0, 1\)"),
        (ops.Adam, {"betas": (0.9,)}, r"two numbers in \[0, 1\), but got \(0.9,\)"),
        (ops.Adam, {"eps": 0.0}, "eps to be above 0, but got 0.0"),
        (ops.Adam, {"weight_decay": -1}, "weight_decay to be at least 0, but got -1"),
    ],
)
def test_settings_out_of_range(kind: Any, settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        kind(**settings)


def test_numbers_for_the_operators() -> None:
    assert ops.SGD(0.9, True, 5e-4).numbers() == [0, 0.9, 1, 5e-4]
    assert ops.Adam((0.8, 0.99), 1e-6, 0.1, True).numbers() == [1, 0.8, 0.99, 1e-6, 0.1, 1]
