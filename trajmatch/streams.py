"""Work side by side on a CUDA device: functions that do not depend on each other, a stream each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

Outputs = tuple[Tensor, ...]


def side_by_side(functions: Sequence[Callable[[], Outputs]], device: torch.device) -> list[Outputs]:
    """Calls functions so that a CUDA device may run them at the same time.

    A device that one function's kernels do not fill takes those of the others into the gaps. Each
    function has a stream of its own, which begins after what the current stream was told before and
    is waited for by what it is told afterwards. So inside the recording of a CUDA graph the streams
    become branches of the graph. Allocations of a branch are reused in that branch only; they come
    from the graph's pool while one is recorded.

    Args:
        functions: What to call; none may write what another one reads or writes.
        device: Where they run. On any other than a CUDA device they are called one after another.

    Returns:
        Their results, in order, for use on the current stream.
    """
    if device.type != "cuda" or len(functions) == 1:
        return [function() for function in functions]
    current = torch.cuda.current_stream(device)
    streams = _streams(current.device, len(functions))  # with its index
    results = []
    for stream in streams:
        stream.wait_stream(current)
    try:
        for function, stream in zip(functions, streams, strict=True):
            with torch.cuda.stream(stream):
                results.append(function())
    finally:  # a recording cannot end, nor an error in it be told, before its branches are joined
        for stream in streams:
            current.wait_stream(stream)
    for result in results:
        for tensor in result:
            # It was allocated for its branch: not to be reused there while the current stream
            # reads it.
            tensor.record_stream(current)
    return results


@cache
def _streams(device: torch.device, count: int) -> tuple[torch.cuda.Stream, ...]:
    """The same streams every time: libraries keep a workspace for each that they have run on."""
    return tuple(torch.cuda.Stream(device) for _ in range(count))
