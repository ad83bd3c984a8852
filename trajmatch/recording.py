"""CUDA graphs: record repeated kernel launches once, then replay them without Python."""

import math
import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from trajmatch.errors import UserError, warn
from trajmatch.memory import is_out_of_memory

Inputs = Sequence[Tensor]
Outputs = tuple[Tensor, ...]
Function = Callable[[Inputs], Outputs]

#: Recorder of a function: returns the result buffers and a replay function that refills them.
Record = Callable[[Callable[[], Outputs]], tuple[Outputs, Callable[[], None]]]


class Way(Protocol):
    """One of several ways to compute the same."""

    def __call__(self) -> AbstractContextManager[None]:
        """Return a context in which functions compute in this way."""

    def keep(self) -> None:
        """Let functions compute in this way from now on."""


#: Warm-up runs before recording, in which libraries choose algorithms and allocate memory.
_WARM_UP = 2

#: Maximum relative error of a replay, as in the benchmarks. cuDNN may sum in another order each
#: time, and over many steps with TF32 products the differences grow beyond the last bits. A graph
#: that is empty or on another device has a relative error of 1.
_BOUND = 0.2

#: Timed replays of each way to compute a function. Their minimum counts.
_REPLAYS = 5


class Replayed:
    """Callable that records repeated calls of functions as CUDA graphs and replays them.

    A function is recorded at its second call with the same input shapes. If recording fails, a
    warning is issued once, and from then on the function is called directly, without a graph.

    Args:
        what: Beginning of that warning, e.g. ``the outer iteration runs``.
        remedy: Setting that silences the warning, or "".
        lower: Setting to lower if memory runs out during the recording, or "".
        keep: Maximum number of recordings; a new one replaces the oldest.
        record: Recorder; default: :func:`cuda_graph`. Tests on the CPU use a recorder that calls
            the function again.
        ways: Called before a recording; returns the ways to compute the function among which none
            has been chosen yet. Each is recorded and its replays are timed; the fastest is kept.
    """

    def __init__(
        self,
        what: str,
        remedy: str = "",
        lower: str = "",
        *,
        keep: int = 1,
        record: Record | None = None,
        ways: Callable[[], Sequence[Way]] = tuple,
    ) -> None:
        self._what, self._remedy, self._lower, self._keep = what, remedy, lower, keep
        self._record, self._ways = record or cuda_graph, ways
        # For each key: input buffers, output buffers and the replay function.
        self._recordings: dict[Hashable, tuple[list[Tensor], Outputs, Callable[[], None]]] = {}
        self._seen: set[Hashable] = set()
        self._failed: set[Hashable] = set()
        self._said: set[str] = set()

    @property
    def recorded(self) -> bool:
        """True if there is a recording."""
        return bool(self._recordings)

    def forget(self) -> None:
        """Free the recordings and their memory; the next call of each records it again."""
        self._recordings.clear()

    def __call__(
        self, kind: Hashable, inputs: Inputs, function: Function, state: Sequence[Tensor] = ()
    ) -> Outputs:
        """Call ``function(inputs)``, or replay its recording; return the outputs.

        Inputs may be on the host; do not change pinned ones before the outputs are read.
        ``kind`` identifies everything that the function depends on besides shapes, dtypes and
        devices of the inputs. The function may write only to the tensors ``state``.
        """
        key = (kind, tuple((each.shape, each.dtype, each.device) for each in inputs))
        # Record at the second call: a function that is called once would not repay the recording.
        if key in self._seen and key not in self._recordings and key not in self._failed:
            self._try_to_record(key, inputs, function, state)
        self._seen.add(key)
        if key not in self._recordings:
            return function(inputs)
        memory, outputs, replay = self._recordings[key]
        for own, value in zip(memory, inputs, strict=True):
            own.copy_(value, non_blocking=True)
        replay()
        # Copies: the next replay overwrites the buffers.
        return tuple(each.clone() for each in outputs)

    def _try_to_record(
        self, key: Hashable, inputs: Inputs, function: Function, state: Sequence[Tensor]
    ) -> None:
        """Record a function, or warn that it cannot be recorded."""
        while len(self._recordings) >= self._keep:  # the oldest is first in the dict
            del self._recordings[next(iter(self._recordings))]
        memory = [each.to(inputs[0].device, copy=True) for each in inputs]
        arguments = self._record, lambda: function(memory), state
        try:
            if ways := self._ways():
                keep_fastest(ways, *arguments)
            made = checked(*arguments)
        except (RuntimeError, UserError) as error:  # UserError: from user code in the function
            self._failed.add(key)
            reason = f"it could not be recorded ({error})"
            if self._lower and is_out_of_memory(error):
                reason += f"; lower {self._lower} to leave memory for it"
            if reason not in self._said:
                self._said.add(reason)
                warn_without_graph(self._what, reason, self._remedy)
        else:
            self._recordings[key] = (memory, *made)


def warn_without_graph(what: str, reason: str, remedy: str = "") -> None:
    """Warn ``WHAT without a CUDA graph, which is slower, because REASON; REMEDY silences this``.

    ``what`` has subject and verb, e.g. ``the outer iteration runs``. ``remedy`` is a setting or "".
    """
    warn(
        f"{what} without a CUDA graph, which is slower, because {reason}"
        + (f"; {remedy} silences this" if remedy else ""),
        RuntimeWarning,
    )


def keep_fastest(
    ways: Sequence[Way], record: Record, function: Callable[[], Outputs], state: Sequence[Tensor]
) -> None:
    """Keep the way in which replays of a function take the least time.

    Each is recorded, as :func:`checked` does it. None is kept if none can be recorded.
    """

    def seconds(way: Way) -> float:
        before = [each.clone() for each in state]
        try:
            with way():
                outputs, replay = checked(record, function, state)
            return min(_seconds(replay, outputs[0].device) for _ in range(_REPLAYS))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                said = f"one of {len(ways)} ways to compute could not be recorded and is left out"
                warn(f"{said} ({error})", RuntimeWarning)
            return math.inf
        finally:
            _put_back(state, before)

    # The recordings are not kept: each holds the memory of its function.
    times = [seconds(way) for way in ways]
    if (least := min(times)) < math.inf:
        ways[times.index(least)].keep()


def _seconds(replay: Callable[[], None], device: torch.device) -> float:
    """Return the time of one replay."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    began = now()
    replay()
    return now() - began


def _put_back(state: Sequence[Tensor], before: Sequence[Tensor]) -> None:
    for each, saved in zip(state, before, strict=True):
        each.copy_(saved)


def checked(
    record: Record, function: Callable[[], Outputs], state: Sequence[Tensor] = ()
) -> tuple[Outputs, Callable[[], None]]:
    """Record a function, check a replay, and return the result buffers and the replay function.

    The function must read and write the same memory in every call. ``state`` are the tensors that a
    call changes; they are restored. Raises RuntimeError if recording fails or the replay is wrong:
    its results or ``state`` differ from those of a call by more than 20 %, and by more than ten
    times the difference between two calls.
    """
    before = [each.clone() for each in state]

    def outcome(results: Outputs) -> list[Tensor]:
        changes = [each - saved for each, saved in zip(state, before, strict=True)]
        return [*(each.clone() for each in results), *changes]

    def call() -> list[Tensor]:
        _put_back(state, before)
        return outcome(function())

    try:
        wanted = call()
        _put_back(state, before)
        results, replay = record(function)
        _put_back(state, before)
        for each in results:  # erase the results of recording, so that only the replay counts
            each.fill_(float("nan"))
        replay()
        apart = relative_error(outcome(results), wanted)
        # `not <=` also catches NaN. Two calls show how much the function itself varies.
        if not apart <= _BOUND and not apart <= 10 * relative_error(call(), wanted):
            raise RuntimeError(
                f"the first replay differs from a normal call by {apart:.1g} (relative)"
            )
    finally:
        _put_back(state, before)
    return results, replay


def relative_error(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Return the largest of the tensors' relative errors, over values finite in ``wanted``."""
    distances = []
    for one, other in zip(found, wanted, strict=True):
        finite = other.isfinite()
        exact = other[finite].double()
        distance = (one[finite].double() - exact).norm()
        distances.append(distance / exact.norm().clamp_min(1e-300))
    return float(torch.stack(distances).max())  # NaN if any distance is NaN


def cuda_graph(
    function: Callable[[], Outputs], device: torch.device | None = None
) -> tuple[Outputs, Callable[[], None]]:
    """Record a function as a CUDA graph; return its result buffers and the replay function.

    The function must read and write the same memory in every call and never synchronise. Before
    recording, it is called a few times with all its side effects. Raises RuntimeError if it cannot
    be recorded.
    """
    # If torch.cuda.graph fails, its stream stays current; this context restores the previous one.
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream(device)):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                function()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Pass a stream: by default all captures share one on the first capture's device, and
        # launches on another device would not be recorded.
        with torch.cuda.graph(graph, stream=side):
            results = function()
    return results, graph.replay
