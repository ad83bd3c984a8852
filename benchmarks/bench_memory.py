"""Peak memory of each variant of the outer iteration, every measurement in a process of its own.

    pytest benchmarks/bench_memory.py --benchmark-json=memory.json

Ours is measured after 10 steps and after 80. The unrolled graph is measured after few steps and
put on the line through them, since 80 steps of it may not fit.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from bench.memory import memory_over_steps, predicted_bytes
from bench.sizes import TINY, Size

SIZES = [Size(32, 50, 80), Size(128, 50, 80)]
STEPS = {
    "trajmatch": (10, 80),
    "trajmatch_tape": (10, 80),
    "eager_unroll_nchw": (1, 2, 4),
    "func_adjoint": (2, 8),
    "compiled_adjoint": (2, 8),
}


@pytest.mark.parametrize("variant", STEPS)
@pytest.mark.parametrize("size", SIZES, ids=["width32", "width128"])
def bench_peak_memory(
    replay: Callable[..., None], device: str, tiny: bool, size: Size, variant: str
) -> None:
    if tiny:
        if size.width != 32 or variant not in ("trajmatch", "eager_unroll_nchw"):
            pytest.skip("a smoke test starts few processes")
        size = TINY
    memory = memory_over_steps(size, variant, device, (1, 2) if tiny else STEPS[variant])
    if "unavailable" in memory:
        pytest.skip(memory["unavailable"])
    replay(
        [0.0],
        f"peak memory, {device}, width,batch {size.shape}",
        memory=memory,
        predicted_bytes=predicted_bytes(memory, size.steps),
    )
