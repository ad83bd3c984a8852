"""What the benchmarks share: sizes, a quiet interpreter, and the facts of the machine."""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

import pytest
import torch


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no GPU here")
    return torch.device(request.param)


@pytest.fixture
def timed(benchmark: Any, device: torch.device) -> Callable[[Callable[[], Any], str], None]:
    """Times a function in a group, after one warm-up; on a GPU up to its synchronisation."""

    def run(function: Callable[[], Any], group: str) -> None:
        def synchronised() -> None:
            function()
            if device.type == "cuda":
                torch.cuda.synchronize()

        benchmark.group = group
        benchmark.extra_info.update(
            torch=torch.__version__,
            threads=torch.get_num_threads(),
            device=torch.cuda.get_device_name() if device.type == "cuda" else platform.processor(),
        )
        benchmark.pedantic(synchronised, rounds=5, warmup_rounds=1)

    return run
