"""Times and memory of a function on a device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

from bench.timing import seconds

from trajmatch.device import peak_bytes, reset_peak, used_bytes


@contextmanager
def changed(target: Any, **values: Any) -> Iterator[None]:
    """Set attributes of an object inside the block."""
    before = {name: getattr(target, name) for name in values}
    for name, value in values.items():
        setattr(target, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(target, name, value)


def measure(
    function: Callable[[], Any],
    device: str,
    rounds: int,
    warmup: int = 1,
    longest: float = float("inf"),
) -> dict[str, Any]:
    """Time calls of a function to the end of what they start on the device.

    Args:
        function: Function to time.
        device: ``"cuda"`` or ``"cpu"``.
        rounds: Timed calls, at most.
        warmup: Calls before; a function that is recorded and replayed allocates in these.
        longest: Seconds of all timed calls after which no other begins.

    Returns:
        ``seconds`` of every timed call, their ``median``, and ``peak_bytes``, the most memory of
        PyTorch on a GPU in any call above what was held before; None on the CPU.
    """
    cuda = device == "cuda"
    held = used_bytes(device) if cuda and reset_peak(device) else 0
    for _ in range(warmup):
        function()
    taken: list[float] = []
    while len(taken) < rounds and sum(taken) < longest:
        taken.append(seconds(function, device))
    peak = peak_bytes(device) - held if cuda else None
    return {"seconds": taken, "median": median(taken), "peak_bytes": peak}
