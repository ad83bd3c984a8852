"""Launches that are the same every time, recorded once and replayed without Python in between.

What records is exchangeable. :func:`cuda_graph` is for a CUDA device; :func:`call_again` calls the
function, which shows on any device that the buffers hold what they should.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from trajmatch.streams import Outputs

#: Runs a function, and gives its results with what fills them anew from the same inputs.
Record = Callable[[Callable[[], Outputs]], tuple[Outputs, Callable[[], None]]]

#: Runs before a recording, in which libraries choose their algorithms and allocate.
_WARM_UP = 2


def cuda_graph(
    function: Callable[[], Outputs], device: torch.device | None = None
) -> tuple[Outputs, Callable[[], None]]:
    """Records the launches of a function on a CUDA device.

    Args:
        function: Reads and writes the same memory whenever it is called, and waits for nothing. It
            is run a few times before it is recorded; what it writes to then counts as written.
        device: Where it runs; None is the current device.

    Returns:
        Its results, filled by the first replay, and the replay.

    Raises:
        RuntimeError: The function does what cannot be recorded.
    """
    # torch.cuda.graph leaves its stream current where it fails: the outer context puts that right.
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream(device)):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                function()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = function()
    return results, graph.replay


def call_again(function: Callable[[], Outputs]) -> tuple[Outputs, Callable[[], None]]:
    """Records nothing: the replay calls the function.

    Args:
        function: What a graph would be made of.

    Returns:
        Its results, and what calls it again and copies the results over the first.
    """
    results = function()

    def replay() -> None:
        for result, again in zip(results, function(), strict=True):
            result.copy_(again)

    return results, replay
