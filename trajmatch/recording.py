"""Launches that are the same every time, recorded once and replayed without Python in between.

What records is exchangeable: :func:`cuda_graph` is for a CUDA device. A recorder that calls the
function again shows on any device that the buffers hold what they should.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from functools import cache

import torch
from torch import Tensor

from trajmatch.errors import UserError

Outputs = tuple[Tensor, ...]

#: Runs a function, and gives its results with what fills them anew from the same inputs.
Record = Callable[[Callable[[], Outputs]], tuple[Outputs, Callable[[], None]]]

#: Runs before a recording, in which libraries choose their algorithms and allocate.
_WARM_UP = 2

#: How far a replay may be from a call, relative to the call's result; as in the benchmarks. The
#: convolution library may add in another order every time, which through many steps with TF32
#: products moves more than the last bits. A graph that is empty or of another device is off by 1.
_BOUND = 0.2


class Replayed:
    """Calls functions of tensors, and replays a recording of those that are called again.

    A function is recorded the second time that it comes with inputs of the same shapes. If
    recording fails, a warning says so once, and that function is called from then on.

    Args:
        what: What runs without a graph where recording fails, for the warning.
        remedy: What silences the warning; empty: nothing.
        keep: Recordings to hold; another one takes the place of the oldest.
        record: Records a function.
    """

    def __init__(
        self, what: str, remedy: str = "", *, keep: int = 1, record: Record | None = None
    ) -> None:
        self._what, self._remedy, self._keep = what, remedy, keep
        self._record = record or cuda_graph
        # The memory that each recording reads, the outputs that it fills, and the replay.
        self._recordings: dict[Hashable, tuple[list[Tensor], Outputs, Callable[[], None]]] = {}
        self._seen: set[Hashable] = set()
        self._failed: set[Hashable] = set()
        self._said: set[str] = set()

    @property
    def recorded(self) -> bool:
        """True once a recording is there."""
        return bool(self._recordings)

    def __call__(
        self,
        kind: Hashable,
        inputs: Sequence[Tensor],
        function: Callable[[Sequence[Tensor]], Outputs],
        state: Sequence[Tensor] = (),
    ) -> Outputs:
        """Call a function of some inputs, or replay it.

        Args:
            kind: All that makes the function another one, beside shapes, dtypes and devices.
            inputs: Copied into memory of its own when recorded.
            function: From inputs to outputs; writes to ``state`` and nothing else.
            state: Tensors that every call changes.

        Returns:
            The outputs; after a replay, copies.
        """
        key = (kind, tuple((each.shape, each.dtype, each.device) for each in inputs))
        if key in self._seen and key not in self._recordings and key not in self._failed:
            self._try_to_record(key, inputs, function, state)
        self._seen.add(key)
        if key not in self._recordings:
            return function(inputs)
        memory, outputs, replay = self._recordings[key]
        for own, value in zip(memory, inputs, strict=True):
            own.copy_(value)
        replay()
        return tuple(each.clone() for each in outputs)

    def _try_to_record(
        self,
        key: Hashable,
        inputs: Sequence[Tensor],
        function: Callable[[Sequence[Tensor]], Outputs],
        state: Sequence[Tensor],
    ) -> None:
        while len(self._recordings) >= self._keep:
            del self._recordings[next(iter(self._recordings))]
        memory = [each.to(inputs[0].device, copy=True) for each in inputs]
        try:
            made = checked(self._record, lambda: function(memory), state)
        except (RuntimeError, UserError) as error:  # the latter of a user's own function
            self._failed.add(key)
            reason = f"it could not be recorded ({error})"
            if reason not in self._said:
                self._said.add(reason)
                warn_without_graph(self._what, reason, self._remedy)
        else:
            self._recordings[key] = (memory, *made)


def warn_without_graph(what: str, reason: str, remedy: str = "") -> None:
    """Warn that something (``the outer iteration runs``) has no CUDA graph, and why."""
    warnings.warn(
        f"{what} without a CUDA graph, which is slower, because {reason}"
        + (f"; {remedy} silences this" if remedy else ""),
        RuntimeWarning,
        stacklevel=4,
    )


def checked(
    record: Record, function: Callable[[], Outputs], state: Sequence[Tensor] = ()
) -> tuple[Outputs, Callable[[], None]]:
    """Record a function and compare the first replay with a call of it.

    Args:
        record: The recorder, e.g. :func:`cuda_graph`.
        function: Reads and writes the same memory whenever it is called.
        state: Tensors that every call changes. They are afterwards as they were before.

    Returns:
        The results of the replay, and the replay.

    Raises:
        RuntimeError: The function cannot be recorded, or the replay's results or changes are off by
            more than a fifth of the call's, and by more than ten times what two calls are apart.
    """
    before = [each.clone() for each in state]

    def put_back() -> None:
        for each, saved in zip(state, before, strict=True):
            each.copy_(saved)

    def outcome(results: Outputs) -> list[Tensor]:
        changes = [each - saved for each, saved in zip(state, before, strict=True)]
        return [*(each.clone() for each in results), *changes]

    def call() -> list[Tensor]:
        put_back()
        return outcome(function())

    try:
        wanted = call()
        put_back()
        results, replay = record(function)
        put_back()
        for each in results:  # so that nothing right is there by chance
            each.fill_(float("nan"))
        replay()
        apart = _apart(outcome(results), wanted)
        if not apart <= _BOUND and not apart <= 10 * _apart(call(), wanted):
            raise RuntimeError(f"the first replay is off by {apart:.1g} of the result")
    finally:
        put_back()
    return results, replay


def _apart(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """The largest relative distance of two tensors where the wanted one is finite."""
    distances = []
    for one, other in zip(found, wanted, strict=True):
        finite = other.isfinite()
        exact = other[finite].double()
        distance = (one[finite].double() - exact).norm()
        distances.append(distance / exact.norm().clamp_min(1e-300))
    return float(torch.stack(distances).max())  # NaN where one is


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
        # By default all captures of a process share a stream of the first one's device, and what is
        # launched on another device goes past the graph.
        with torch.cuda.graph(graph, stream=side):
            results = function()
    return results, graph.replay


def side_by_side(functions: Sequence[Callable[[], Outputs]], device: torch.device) -> list[Outputs]:
    """Call functions so that a CUDA device may run them at the same time.

    Kernels of several functions overlap where those of one do not fill the device. Each function
    has a stream of its own: it starts after the work that is already queued on the current stream,
    and the current stream waits for it. While a CUDA graph is recorded, the streams become branches
    of the graph. The memory of a branch is reused in that branch only; it comes from the graph's
    pool.

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
