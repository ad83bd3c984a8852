"""Steps of several experts in lockstep: called one by one, or replayed as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from trajmatch.experts.step import Batch, ExpertState, ExpertStep
from trajmatch.recording import Outputs, Record, Replayed, cuda_graph, side_by_side

#: Function that takes one step with every expert: from the stacked batches to losses ``[experts]``.
TakeSteps = Callable[[Batch], Tensor]


def steps_for(
    steps: Sequence[ExpertStep],
    states: Sequence[ExpertState],
    device: torch.device,
    record: Record | None = None,
) -> TakeSteps:
    """Return a function that takes one step with every expert.

    Every call advances ``states`` in place. It replays a CUDA graph on a CUDA device and is a plain
    call elsewhere, unless ``record`` gives another way to record the steps.
    """
    if device.type == "cuda":
        record = record or partial(cuda_graph, device=device)
    function = called(steps, states, device)
    if record is None:
        return lambda batch: function(batch)[0]
    # Two recordings: the last batch of an epoch may be smaller. Recording runs real steps, so
    # `flat` lists the state to put back afterwards.
    replayed = Replayed("the experts' steps run", keep=2, record=record)
    flat = [each for state in states for each in state.tensors().values()]
    return lambda batch: replayed(None, batch, function, flat)[0]


def called(
    steps: Sequence[ExpertStep], states: Sequence[ExpertState], device: torch.device
) -> Callable[[Sequence[Tensor]], Outputs]:
    """Return a function that calls each expert's step, in parallel on a CUDA device."""

    def all_steps(tensors: Sequence[Tensor]) -> Outputs:
        batch = Batch(*tensors)

        def one(index: int) -> Outputs:
            return (steps[index](states[index], batch.of(index)),)

        functions = [partial(one, index) for index in range(len(states))]
        return (torch.stack([loss for (loss,) in side_by_side(functions, device)]),)

    return all_steps
