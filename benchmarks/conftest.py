"""What the benchmarks share: sizes that are tiny in a smoke test, and rounds taken in turn."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from trajmatch.cli.main import SPIN_COUNT

# As in the program itself, before torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)

import torch
from bench import facts

from trajmatch.memory import keep_freed_memory

keep_freed_memory()  # likewise; it serves all that is compared


class ReplayClock:
    """A clock that stands still, except where measured seconds are put on it.

    What is compared was timed in alternating rounds before. pytest-benchmark times functions one
    after another; with this clock it sees the rounds as they were.
    """

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


CLOCK = ReplayClock()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.benchmark(timer=CLOCK))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> str:
    """The devices that there are."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no GPU here")
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def tiny(pytestconfig: pytest.Config) -> bool:
    """Whether this is a smoke test: ``--benchmark-disable``."""
    disabled: bool = pytestconfig.getoption("benchmark_disable")
    return disabled


@pytest.fixture
def replay(benchmark: Any, device: str) -> Callable[..., None]:
    """Hands measured rounds (seconds) to pytest-benchmark, in a group, with facts beside them."""

    def report(rounds: Sequence[float], group: str, **record: Any) -> None:
        remaining = iter(rounds)

        def pass_time() -> None:
            CLOCK.now += next(remaining)

        benchmark.group = group
        benchmark.extra_info.update(record, machine=facts.machine(device), origin=facts.origin())
        benchmark.pedantic(pass_time, rounds=len(rounds))

    return report
