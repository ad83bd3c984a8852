"""The matches of an outer iteration as one graph: recorded once and replayed, without Python.

A match of ``N`` student steps is thousands of short launches, which cost more to issue than to run
where the student is small. They are the same every time; only the numbers in the inputs differ. So
the inputs are copied into tensors that stay where they are, and the graph recorded from those is
replayed. Several matches are branches of the graph, side by side: one small student does not fill
the device.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from trajmatch import ops
from trajmatch.distill.initialise import SyntheticSet
from trajmatch.distill.matching import MatchingLoss, Segment
from trajmatch.distill.outer import (
    Match,
    OuterGradient,
    StudentSteps,
    differentiate,
    outer_gradients,
)
from trajmatch.errors import UserError
from trajmatch.ops.arguments import DsaReplay
from trajmatch.parallel import ALONE, Ranks
from trajmatch.recording import Record, checked, cuda_graph
from trajmatch.streams import Outputs, side_by_side

if TYPE_CHECKING:
    from trajmatch.distill.problem import Problem


class _Inputs(NamedTuple):
    """What differs from one outer iteration to the next, the matches' own stacked or in a row.

    Attributes:
        images: The synthetic images. ``[n, C, H, W]``.
        labels: ``[n]`` or ``[n, K]``.
        starts: Where each student starts. ``[matches, P]``.
        targets: What each should reach. ``[matches, P]``.
        between: What the loss looks at in between, epoch by epoch. ``[matches, epochs, P]``.
        loss_scales: Factors of the students' losses. ``[matches]``.
        indices: The batches of all steps of all matches.
        dsa: DSA's parameters of the images in all batches ``[len(indices), 5]``, on the CPU; empty
            where the matches are not all augmented by DSA.
    """

    images: Tensor
    labels: Tensor
    starts: Tensor
    targets: Tensor
    between: Tensor
    loss_scales: Tensor
    indices: Tensor
    dsa: Tensor


@dataclass(frozen=True)
class _Recording:
    """A graph with the memory it works on.

    Attributes:
        signature: What matches must have in common with those recorded.
        inputs: The tensors that the graph reads.
        lr: The step size that it reads. ``[]``.
        outputs: Loss, gradient of the step size and whether the segment has a length, for each
            match ``[matches, 3]``, float64; then, for each match, the gradients of its images and
            of its labels, the latter empty where they are hard.
        replay: Fills ``outputs`` from ``inputs`` and ``lr``.
    """

    signature: tuple[Any, ...]
    inputs: _Inputs
    lr: Tensor
    outputs: Outputs
    replay: Callable[[], None]


class MatchGraph:
    """:func:`trajmatch.distill.outer.outer_gradients` by replaying a graph.

    Matches are recorded when as many of the same shapes come the second time. Where that fails,
    a warning says so once, and matches run without a graph as long as their steps are taken
    in the same way. A leaner plan, for which there may be memory, is tried again.

    Args:
        record: Records a function.
    """

    def __init__(self, record: Record = cuda_graph) -> None:
        self._record = record
        self._recording: _Recording | None = None
        self._last_signature: tuple[Any, ...] | None = None
        self._failed: StudentSteps | None = None

    @property
    def recorded(self) -> bool:
        """Whether the next matches of the same shapes are a replay."""
        return self._recording is not None

    def __call__(
        self,
        model: nn.Module,
        matches: Sequence[Match],
        synthetic: SyntheticSet,
        step_size: float,
        *,
        steps: StudentSteps,
        loss: MatchingLoss,
    ) -> list[OuterGradient]:
        """Arguments and results are those of ``outer_gradients``; the gradients are copies."""
        inputs = _inputs(matches, synthetic)
        signature = (
            model,
            steps,
            loss,
            [sorted(match.segment.between) for match in matches],
            # Of DSA the parameters are inputs; any other function must be the same one.
            [DsaReplay if len(inputs.dsa) else match.augment for match in matches],
            [[len(batch) for batch in match.batches] for match in matches],
            [(each.shape, each.dtype, each.device) for each in inputs],
        )
        if self._recording is None or self._recording.signature != signature:
            self._recording = None
            if signature == self._last_signature and steps != self._failed:
                self._recording = self._try_to_record(signature, inputs, step_size)
            self._last_signature = signature
        if self._recording is None:
            return outer_gradients(model, matches, synthetic, step_size, steps=steps, loss=loss)
        return _replayed(self._recording, inputs, step_size)

    def _try_to_record(
        self, signature: tuple[Any, ...], inputs: _Inputs, step_size: float
    ) -> _Recording | None:
        try:
            return _recorded(self._record, signature, inputs, step_size)
        except (RuntimeError, UserError) as error:  # the latter of a term of the user's own
            self._failed = signature[1]
            _warn(f"it could not be recorded ({error})")
            return None


def graph_for(problem: Problem, ranks: Ranks = ALONE) -> MatchGraph | None:
    """The graph for the matches of a run, or ``None`` where they run without.

    A reason other than the device and ``--no-graph``, which the user knows, is said as a warning.

    Args:
        problem: What the run works on.
        ranks: The processes of the run.
    """
    if problem.device.type != "cuda" or not problem.config.graph:
        return None
    if ops.engine_for(problem.model) != "engine":
        _warn("the experts' network is not one that the engine knows")
        return None
    if ranks.size > 1 and problem.config.parallel == "batch":
        _warn("--parallel batch exchanges tensors in every student step")
        return None
    return MatchGraph(partial(cuda_graph, device=problem.device))


def _warn(reason: str) -> None:
    warnings.warn(
        f"the outer iteration runs without a CUDA graph, which is slower, because {reason}; "
        "--no-graph silences this",
        RuntimeWarning,
        stacklevel=3,
    )


def _inputs(matches: Sequence[Match], synthetic: SyntheticSet) -> _Inputs:
    height, width = synthetic.images.shape[2:]
    dsa = [
        (match.augment, match.batches) for match in matches if isinstance(match.augment, DsaReplay)
    ]
    rows = [
        augment.dsa_parameters(step, len(batch), height, width)
        for augment, batches in dsa
        for step, batch in enumerate(batches)
        if len(dsa) == len(matches)
    ]
    return _Inputs(
        synthetic.images,
        synthetic.labels,
        torch.stack([match.segment.start for match in matches]),
        torch.stack([match.segment.target for match in matches]),
        torch.stack([_between(match.segment) for match in matches]),
        torch.tensor([match.loss_scale for match in matches], dtype=synthetic.images.dtype),
        torch.cat([batch for match in matches for batch in match.batches]),
        torch.cat(rows) if rows else torch.empty(0),
    )


def _between(segment: Segment) -> Tensor:
    """The expert's parameters in between, in the order of their epochs. ``[epochs, P]``."""
    rows = [segment.between[epoch] for epoch in sorted(segment.between)]
    return torch.stack(rows) if rows else segment.start.new_empty(0, len(segment.start))


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
    record: Record, signature: tuple[Any, ...], inputs: _Inputs, step_size: float
) -> _Recording:
    model, steps, loss, *_ = signature
    device = inputs.images.device
    memory = _Inputs(*(each.to(device, copy=True) for each in inputs))
    lr = torch.full((), step_size, dtype=memory.images.dtype, device=device)

    def differentiated(match: Match) -> Outputs:
        # Each match differentiates in its own view: a leaf of autograd belongs to one stream.
        soft = memory.labels.is_floating_point()
        value, grad_lr, grad_images, *grad_labels = differentiate(
            model,
            match,
            SyntheticSet(
                memory.images.detach().requires_grad_(),
                memory.labels.detach().requires_grad_(soft),
            ),
            lr.detach().requires_grad_(),
            steps=steps,
            loss=loss,
        )
        moves = (match.segment.start != match.segment.target).any()
        numbers = torch.stack([each.double() for each in (value, grad_lr, moves)])
        return numbers, grad_images, grad_labels[0] if soft else grad_images.new_empty(0)

    functions = [partial(differentiated, match) for match in _matches_of(memory, signature)]

    def all_matches() -> Outputs:
        numbers, *grads = zip(*side_by_side(functions, device), strict=True)
        return torch.stack(numbers), *(each for own in zip(*grads, strict=True) for each in own)

    outputs, replay = checked(record, all_matches)
    return _Recording(signature, memory, lr, outputs, replay)


def _matches_of(memory: _Inputs, signature: tuple[Any, ...]) -> list[Match]:
    """The matches whose numbers lie in the memory that a graph reads."""
    _, _, _, between, augments, sizes, _ = signature
    counts = [sum(each) for each in sizes]
    if len(memory.dsa):
        rows = memory.dsa.split(counts)
        augments = [_BufferedDsa(own.split(steps)) for own, steps in zip(rows, sizes, strict=True)]
    return [
        Match(
            Segment(start, target, dict(zip(epochs, rows, strict=True))),
            indices.split(steps),
            augment,
            scale,
        )
        for start, target, epochs, rows, scale, indices, steps, augment in zip(
            memory.starts,
            memory.targets,
            between,
            memory.between,
            memory.loss_scales,
            memory.indices.split(counts),
            sizes,
            augments,
            strict=True,
        )
    ]


def _replayed(recording: _Recording, inputs: _Inputs, step_size: float) -> list[OuterGradient]:
    for memory, value in zip(recording.inputs, inputs, strict=True):
        memory.copy_(value)
    recording.lr.fill_(step_size)
    recording.replay()
    numbers, *grads = recording.outputs
    # Read together, for reading waits for the device.
    return [
        OuterGradient(
            loss=loss,
            images=images.clone(),
            step_size=grad_lr,
            stands_still=not moves,
            labels=labels.clone() if len(labels) else None,
        )
        for (loss, grad_lr, moves), images, labels in zip(
            numbers.tolist(), grads[::2], grads[1::2], strict=True
        )
    ]
