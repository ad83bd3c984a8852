"""Gradients of an outer iteration: task by task, or all tasks replayed as one CUDA graph.

A small student's kernels take longer to launch than to run, and a graph launches them all at once.
The tasks share these launches if they can, because one small student does not fill the GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import Any

from trajmatch import ops, recording
from trajmatch.distill.objectives import Objective, Plan, Results
from trajmatch.distill.parallel import Division
from trajmatch.distill.problem import Problem
from trajmatch.images.parametrisation import Tensors

#: Function from tasks, outer parameters and a plan to the results of the tasks. It may return while
#: the device still computes them.
Gradients = Callable[[Sequence[Any], Tensors, Plan], list[Results]]

_WHAT, _REMEDY = "the outer iteration runs", "--no-graph"


def one_by_one(
    objective: Objective,
    tasks: Sequence[Any],
    parameters: Tensors,
    plan: Plan,
) -> list[Results]:
    """Differentiate the tasks one after another."""
    return [objective.differentiate(task, parameters, plan) for task in tasks]


class Graph:
    """Function that computes the gradients of all tasks by replaying one CUDA graph.

    ``record`` makes the graph, e.g. :func:`trajmatch.recording.cuda_graph`.
    """

    def __init__(self, objective: Objective, record: recording.Record) -> None:
        self._objective = objective
        self._replayed = recording.Replayed(_WHAT, _REMEDY, record=record)

    @property
    def recorded(self) -> bool:
        """True once a graph has been recorded."""
        return self._replayed.recorded

    def __call__(self, tasks: Sequence[Any], parameters: Tensors, plan: Plan) -> list[Results]:
        """Return the results of the tasks; see :data:`Gradients`."""
        objective = self._objective
        kinds, inputs = zip(*(objective.inputs(task) for task in tasks), strict=True)
        # The graph's buffers are plain tensors: note here which ones need a gradient.
        learned = [value.requires_grad for value in parameters.values()]

        def all_tasks(tensors: recording.Inputs) -> recording.Outputs:
            # The buffers that the graph reads: outer parameters first, then each task's inputs.
            # All come from one iterator; `zip` stops at the last parameter and leaves the inputs.
            rest = iter(tensors)
            memory = {
                name: value.detach().requires_grad_(required)
                for name, value, required in zip(parameters, rest, learned, strict=False)
            }
            own = [
                objective.with_inputs(kind, list(islice(rest, len(each))))
                for kind, each in zip(kinds, inputs, strict=True)
            ]
            results = objective.differentiate_together(own, memory, plan)
            return tuple(each for result in results for each in result)

        # Plan, kinds and `learned` are fixed in a recording: if one changes, record a new graph.
        flat = [value.detach() for value in parameters.values()]
        flat += [each for own in inputs for each in own]
        outputs = self._replayed((plan, kinds, tuple(learned)), flat, all_tasks)
        count = len(outputs) // len(tasks)  # every task returns the same number of tensors
        return [outputs[at : at + count] for at in range(0, len(outputs), count)]


def gradients_for(problem: Problem, division: Division | None = None) -> Gradients:
    """Return the function that computes a run's gradients: a CUDA graph if possible."""
    division, objective = division or Division(), problem.objective
    if division.by_batch:
        objective = objective.shared(division.ranks)
    plain = partial(one_by_one, objective)
    # No warning if the user chose this, or if recording would not pay (`records` is None).
    if problem.device.type != "cuda" or not problem.config.graph or objective.records is None:
        return plain
    if not objective.records:
        reason = f"--objective {problem.config.objective} cannot be recorded"
    elif ops.engine_for(problem.model) != "engine":
        reason = "the experts' network is not one that the engine knows"
    elif division.shares_steps:
        reason = "--parallel batch exchanges tensors in every student step"
    else:
        return Graph(objective, partial(recording.cuda_graph, device=problem.device))
    recording.warn_without_graph(_WHAT, reason, _REMEDY)
    return plain
