"""The steps of several experts, taken together: called one after another, or as one graph.

Every expert has a state and a batch of its own, and its steps are the same whether others are
taken with them or not.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from trajmatch.experts.step import Batch, ExpertState, ExpertStep
from trajmatch.recording import Record, checked, cuda_graph
from trajmatch.streams import Outputs, side_by_side

#: Takes one step with every expert: from their batches, stacked, to their losses ``[experts]``.
TakeSteps = Callable[[Batch], Tensor]


class PlainSteps:
    """Calls the steps of the experts one after another.

    Args:
        steps: The step of each expert.
        states: The experts' states, which every call brings forward.
    """

    def __init__(self, steps: Sequence[ExpertStep], states: Sequence[ExpertState]) -> None:
        self._steps, self._states = steps, states

    def __call__(self, batch: Batch) -> Tensor:
        """Takes one step with every expert; see :data:`TakeSteps`."""
        return torch.stack(
            [
                step(state, batch.of(index))
                for index, (step, state) in enumerate(zip(self._steps, self._states, strict=True))
            ]
        )


@dataclass(frozen=True)
class _Recording:
    """A graph of one step of all experts.

    Attributes:
        batch: The tensors that it reads.
        losses: What it fills. ``[experts]``.
        replay: Takes the steps.
    """

    batch: Batch
    losses: Tensor
    replay: Callable[[], None]


class ReplayedSteps:
    """Replays one graph that has the step of each expert as a branch.

    A graph is recorded when batches of the same size come the second time, so one for the last
    batch of an epoch, where that is smaller. Where recording fails, this is said once as a warning,
    and all steps are called.

    Args:
        steps: The step of each expert.
        states: The experts' states, which every call brings forward.
        record: Records a function.
    """

    def __init__(
        self,
        steps: Sequence[ExpertStep],
        states: Sequence[ExpertState],
        record: Record = cuda_graph,
    ) -> None:
        self._steps, self._states, self._record = steps, states, record
        self._plain = PlainSteps(steps, states)
        self._recordings: dict[int, _Recording] = {}
        self._seen: set[int] = set()
        self._failed = False

    def __call__(self, batch: Batch) -> Tensor:
        """Takes one step with every expert; see :data:`TakeSteps`."""
        size = batch.indices.shape[1]
        if size in self._seen and size not in self._recordings and not self._failed:
            self._try_to_record(batch)
        self._seen.add(size)
        if size not in self._recordings:
            return self._plain(batch)
        recording = self._recordings[size]
        for memory, value in zip(recording.batch, batch, strict=True):
            memory.copy_(value)
        recording.replay()
        return recording.losses.clone()

    def _try_to_record(self, batch: Batch) -> None:
        try:
            self._recordings[batch.indices.shape[1]] = self._recorded(batch)
        except RuntimeError as error:
            self._failed = True
            warnings.warn(
                "the experts' steps run without a CUDA graph, which is slower, because they could "
                f"not be recorded ({error})",
                RuntimeWarning,
                stacklevel=2,
            )

    def _recorded(self, batch: Batch) -> _Recording:
        memory = Batch(*(each.clone(memory_format=torch.contiguous_format) for each in batch))

        def one_step(index: int) -> Outputs:
            return (self._steps[index](self._states[index], memory.of(index)),)

        functions = [partial(one_step, index) for index in range(len(self._states))]

        def all_steps() -> Outputs:
            (losses,) = zip(*side_by_side(functions, memory.indices.device), strict=True)
            return (torch.stack(losses),)

        # Recording takes steps, but none of them counts.
        state = [each for own in self._states for each in own]
        (losses,), replay = checked(self._record, all_steps, state)
        return _Recording(memory, losses, replay)


def steps_for(
    steps: Sequence[ExpertStep], states: Sequence[ExpertState], device: torch.device
) -> PlainSteps | ReplayedSteps:
    """What takes the steps on a device: a graph on CUDA, calls elsewhere.

    Args:
        steps: The step of each expert.
        states: The experts' states.
        device: Where they are.
    """
    if device.type != "cuda":
        return PlainSteps(steps, states)
    return ReplayedSteps(steps, states, partial(cuda_graph, device=device))
