"""The steps of several experts, taken together: called one after another, or as one graph.

Every expert has a state and a batch of its own, and its steps are the same whether others are
taken with them or not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from trajmatch.experts.step import Batch, ExpertState, ExpertStep
from trajmatch.recording import Outputs, Record, Replayed, cuda_graph, side_by_side

#: Takes one step with every expert: from their batches, stacked, to their losses ``[experts]``.
TakeSteps = Callable[[Batch], Tensor]


def steps_for(
    steps: Sequence[ExpertStep],
    states: Sequence[ExpertState],
    device: torch.device,
    record: Record | None = None,
) -> TakeSteps:
    """Return what takes one step with every expert: a graph on a CUDA device, calls elsewhere.

    Args:
        steps: The step of each expert.
        states: The experts' states, which every call advances.
        device: Where they are.
        record: Records the steps, in place of a CUDA graph.
    """
    if device.type == "cuda":
        record = record or partial(cuda_graph, device=device)
    function = called(steps, states, device)
    if record is None:
        return lambda batch: function(batch)[0]
    # One for the last batch of an epoch, where that is smaller. A recording takes steps, but none
    # of them counts.
    replayed = Replayed("the experts' steps run", keep=2, record=record)
    flat = [each for state in states for each in state.tensors().values()]
    return lambda batch: replayed(None, batch, function, flat)[0]


def called(
    steps: Sequence[ExpertStep], states: Sequence[ExpertState], device: torch.device
) -> Callable[[Sequence[Tensor]], Outputs]:
    """Return a function that calls the step of each expert, side by side on a CUDA device."""

    def all_steps(tensors: Sequence[Tensor]) -> Outputs:
        batch = Batch(*tensors)

        def one(index: int) -> Outputs:
            return (steps[index](states[index], batch.of(index)),)

        functions = [partial(one, index) for index in range(len(states))]
        return (torch.stack([loss for (loss,) in side_by_side(functions, device)]),)

    return all_steps
