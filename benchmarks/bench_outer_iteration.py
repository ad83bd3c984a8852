"""The outer iteration over the grid of the record, in the tables of pytest-benchmark.

    pytest benchmarks/bench_outer_iteration.py -k "32-10-20" --benchmark-columns=min,median

``grid.py`` measures the same cells with the same functions, stops and goes on, and writes the
record that the project keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from bench.grid import ALL_CELLS, memory_of_baselines, rows_of_memory
from bench.outer import measure_cell
from bench.sizes import TINY, Size
from bench.variants import TRACED_VARIANTS, VARIANTS


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    tiny = metafunc.config.getoption("benchmark_disable")
    sizes = [TINY] if tiny else list(dict.fromkeys(ALL_CELLS))
    metafunc.parametrize("size", sizes, ids=[size.key.replace(",", "-") for size in sizes])


@cache
def memory(shape: Size, device: str) -> dict[str, dict[str, Any]]:
    return rows_of_memory(memory_of_baselines(shape, device))


@cache
def cell(size: Size, device: str, tiny: bool) -> dict[str, Any]:
    if tiny:
        return measure_cell(size, device=device, rounds=1, variants=TRACED_VARIANTS)
    return measure_cell(size, device=device, memory=memory(size.with_steps(1), device))


@pytest.mark.parametrize("variant", VARIANTS)
def bench_outer_iteration(
    replay: Callable[..., None], device: str, tiny: bool, size: Size, variant: str
) -> None:
    measured = cell(size, device, tiny)
    assert measured["agreement"]["agree"], measured["agreement"]
    row = measured["rows"][variant]
    if "seconds" not in row:
        pytest.skip(f"{row['status']}: {row['reason']}")
    replay(
        row["seconds"]["rounds"],
        f"outer iteration, {device}, width,batch,N {size.key}",
        row=row,
        ratios=measured["ratios"],
        gflops=measured["gflops"],
    )
