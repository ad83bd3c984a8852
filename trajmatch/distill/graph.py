"""One match as a graph: its launches are recorded once and replayed, without Python in between.

A match of ``N`` student steps is thousands of short launches, which cost more to issue than to run
where the student is small. They are the same every time; only the numbers in the inputs differ. So
the inputs are copied into tensors that stay where they are, and the graph recorded from those is
replayed.

What records is exchangeable. :func:`cuda_graph` is for a CUDA device; :func:`call_again` calls the
function, which shows on any device that the buffers hold what they should.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trajmatch import ops
from trajmatch.distill.initialise import SyntheticSet
from trajmatch.distill.matching import Segment
from trajmatch.distill.outer import OuterGradient, differentiate, outer_gradient
from trajmatch.ops.unroll import DsaReplay

if TYPE_CHECKING:
    from trajmatch.distill.problem import Problem

Outputs = tuple[Tensor, ...]

#: Runs a function, and gives its results with what fills them anew from the same inputs.
Record = Callable[[Callable[[], Outputs]], tuple[Outputs, Callable[[], None]]]

#: Runs before a recording, in which libraries choose their algorithms and allocate.
_WARM_UP = 2


def cuda_graph(
    function: Callable[[], Outputs], device: torch.device | None = None
) -> tuple[Outputs, Callable[[], None]]:
    """Records the launches of a function on a CUDA device.

    Args:
        function: Reads and writes the same memory whenever it is called, and waits for nothing.
        device: Where it runs; None is the current device.

    Returns:
        Its results, filled by the first replay, and the replay.

    Raises:
        RuntimeError: The function does what cannot be recorded.
    """
    with torch.cuda.device(device):
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


@dataclass(frozen=True)
class _Recording:
    """A graph with the memory it works on.

    Attributes:
        signature: What a match must have in common with the one recorded.
        inputs: The tensors that the graph reads, in the order of :func:`_inputs`.
        lr: The step size that it reads. ``[]``.
        outputs: Loss ``[]``, gradient of the images, of the step size ``[]``, and whether the
            segment has a length ``[]``.
        replay: Fills ``outputs`` from ``inputs`` and ``lr``.
    """

    signature: tuple[Any, ...]
    inputs: tuple[Tensor, ...]
    lr: Tensor
    outputs: Outputs
    replay: Callable[[], None]


class MatchGraph:
    """:func:`trajmatch.distill.outer.outer_gradient` by replaying a graph.

    A match is recorded when one of the same shapes comes the second time. Where that fails, this is
    said once as a warning, and all matches run without a graph.

    Args:
        record: Records a function.
    """

    def __init__(self, record: Record = cuda_graph) -> None:
        self._record = record
        self._recording: _Recording | None = None
        self._last_signature: tuple[Any, ...] | None = None
        self._failed = False

    @property
    def recorded(self) -> bool:
        """Whether the next match of the same shapes is a replay."""
        return self._recording is not None

    def __call__(
        self,
        model: nn.Module,
        segment: Segment,
        synthetic: SyntheticSet,
        step_size: float,
        batches: Sequence[Tensor],
        *,
        student_momentum: float,
        augment: Callable[[Tensor, int], Tensor] | None,
    ) -> OuterGradient:
        """Arguments and result are those of ``outer_gradient``; the gradient is a copy."""
        inputs = _inputs(segment, synthetic, batches, augment)
        signature = (
            model,
            student_momentum,
            # Of DSA the parameters are inputs; any other function must be the same one.
            DsaReplay if isinstance(augment, DsaReplay) else augment,
            [len(batch) for batch in batches],
            [(each.shape, each.dtype, each.device) for each in inputs],
        )
        if self._recording is None or self._recording.signature != signature:
            self._recording = None
            if signature == self._last_signature and not self._failed:
                self._recording = self._try_to_record(signature, inputs, step_size)
            self._last_signature = signature
        if self._recording is None:
            return outer_gradient(
                model,
                segment,
                synthetic,
                step_size,
                batches,
                student_momentum=student_momentum,
                augment=augment,
            )
        return _replayed(self._recording, inputs, step_size)

    def _try_to_record(
        self, signature: tuple[Any, ...], inputs: Sequence[Tensor], step_size: float
    ) -> _Recording | None:
        try:
            return _recorded(self._record, signature, inputs, step_size)
        except RuntimeError as error:
            self._failed = True
            _warn(f"it could not be recorded ({error})")
            return None


def graph_for(problem: Problem) -> MatchGraph | None:
    """The graph for the matches of a run, or ``None`` where they run without.

    A reason other than the device and ``--no-graph``, which the user knows, is said as a warning.

    Args:
        problem: What the run works on.
    """
    if problem.device.type != "cuda" or not problem.config.graph:
        return None
    if ops.engine_for(problem.model) != "engine":
        _warn("the experts' network is not one that the engine knows")
        return None
    return MatchGraph(partial(cuda_graph, device=problem.device))


def _warn(reason: str) -> None:
    warnings.warn(
        f"the outer iteration runs without a CUDA graph, which is slower, because {reason}; "
        "--no-graph silences this",
        RuntimeWarning,
        stacklevel=3,
    )


def _inputs(
    segment: Segment,
    synthetic: SyntheticSet,
    batches: Sequence[Tensor],
    augment: Callable[[Tensor, int], Tensor] | None,
) -> tuple[Tensor, ...]:
    """Start, target, images, labels, the indices of all batches in a row, and DSA's parameters."""
    images = synthetic.images
    inputs = (segment.start, segment.target, images, synthetic.labels, torch.cat([*batches]))
    if not isinstance(augment, DsaReplay):
        return inputs
    height, width = images.shape[2:]
    rows = [
        augment.dsa_parameters(step, len(batch), height, width)
        for step, batch in enumerate(batches)
    ]
    return *inputs, torch.cat(rows)


class _BufferedDsa:
    """DSA whose parameters lie in memory that a graph reads.

    Args:
        rows: The parameters of each step's images. ``[B, 5]`` each, float64.
    """

    def __init__(self, rows: Sequence[Tensor]) -> None:
        self._rows = rows

    def __call__(self, images: Tensor, step: int) -> Tensor:
        return ops.dsa(images, self._rows[step])

    def dsa_parameters(self, step: int, count: int, height: int, width: int) -> Tensor:
        return self._rows[step]


def _recorded(
    record: Record, signature: tuple[Any, ...], inputs: Sequence[Tensor], step_size: float
) -> _Recording:
    model, student_momentum, augment, sizes, _ = signature
    device = inputs[0].device
    memory = tuple(each.to(device, copy=True) for each in inputs)
    start, target, images, labels, indices, *parameters = memory
    if parameters:
        augment = _BufferedDsa(parameters[0].split(sizes))
    images.requires_grad_()
    lr = torch.full((), step_size, dtype=images.dtype, device=device, requires_grad=True)

    def match() -> Outputs:
        loss, grad_images, grad_lr = differentiate(
            model,
            Segment(start, target),
            SyntheticSet(images, labels),
            lr,
            indices.split(sizes),
            student_momentum=student_momentum,
            augment=augment,
        )
        return loss, grad_images, grad_lr, (start != target).any()

    outputs, replay = record(match)
    return _Recording(signature, memory, lr, outputs, replay)


def _replayed(recording: _Recording, inputs: Sequence[Tensor], step_size: float) -> OuterGradient:
    with torch.no_grad():
        for memory, value in zip(recording.inputs, inputs, strict=True):
            memory.copy_(value)
        recording.lr.fill_(step_size)
    recording.replay()
    loss, grad_images, grad_lr, moves = recording.outputs
    # Read together, for reading waits for the device.
    numbers = torch.stack([each.double() for each in (loss, grad_lr, moves)]).tolist()
    return OuterGradient(
        loss=numbers[0],
        images=grad_images.clone(),
        step_size=numbers[1],
        stands_still=not numbers[2],
    )
