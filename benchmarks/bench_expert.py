"""Steps of expert training beside the eager loop.

pytest benchmarks/bench_expert.py --benchmark-columns=min,median
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from bench.expert import KINDS, measure_expert

STRATEGY = "color_crop_cutout_flip_scale_rotate"


@cache
def measured(
    width: int, threads: int, dsa: str, kind: str, device: str, tiny: bool
) -> dict[str, Any]:
    choices: dict[str, Any] = {"dsa": dsa, "kind": kind, "device": device}
    if tiny:
        return measure_expert(4, 6, steps=2, rounds=1, threads=1, image_size=8, depth=1, **choices)
    # Eager PyTorch takes seconds for a step at width 128.
    steps = 8 if width < 128 else 3
    return measure_expert(width, 256, steps=steps, threads=threads, **choices)


@pytest.mark.parametrize("variant", ["trajmatch", "eager_nchw", "eager_nhwc"])
@pytest.mark.parametrize("dsa", ["none", STRATEGY], ids=["plain", "dsa"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("width", [32, 128])
def bench_expert_step(
    replay: Callable[..., None],
    device: str,
    tiny: bool,
    width: int,
    threads: int,
    kind: str,
    dsa: str,
    variant: str,
) -> None:
    record = measured(width, threads, dsa, kind, device, tiny)
    assert record["agree"], record["differences"]
    replay(
        record["seconds"][variant]["rounds"],
        f"expert step ({kind}), {device}, width {width}, {threads} threads, augmentation {dsa}",
        ratio=record["ratio"],
    )
