"""Gradients of an outer iteration: task by task, or all tasks replayed as one CUDA graph.

A small student's kernels take longer to launch than to run, and a graph launches them all at once.
The tasks share these launches if they can, because one small student does not fill the GPU.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from trajmatch import ops, recording
from trajmatch.distill.objectives import Objective, Plan, Results
from trajmatch.distill.parallel import Division
from trajmatch.distill.problem import Problem
from trajmatch.images.parametrisation import Tensors
from trajmatch.networks.engine import ways_to_measure

#: Function from tasks, outer parameters and a plan to the results of the tasks. It may return while
#: the device still computes them.
Gradients = Callable[[Sequence[Any], Tensors, Plan], list[Results]]

_WHAT, _REMEDY, _LOWER = "the outer iteration runs", "--no-graph", "--tape-mb or --matches"


def one_by_one(
    objective: Objective, tasks: Sequence[Any], parameters: Tensors, plan: Plan
) -> list[Results]:
    """Differentiate the tasks one after another."""
    return [objective.differentiate(task, parameters, plan) for task in tasks]


class Graph:
    """Function that computes the gradients of all tasks by replaying one CUDA graph.

    ``record`` makes the graph, e.g. :func:`trajmatch.recording.cuda_graph`; ``ways`` is as for
    :class:`trajmatch.recording.Replayed`.
    """

    def __init__(
        self,
        objective: Objective,
        record: recording.Record,
        ways: Callable[[], Sequence[recording.Way]] = tuple,
    ) -> None:
        self._objective = objective
        self.replayed = recording.Replayed(_WHAT, _REMEDY, _LOWER, record=record, ways=ways)

    def __call__(self, tasks: Sequence[Any], parameters: Tensors, plan: Plan) -> list[Results]:
        """Return the results of the tasks; see :data:`Gradients`."""
        leaves, structure = tree_flatten((dict(parameters), list(tasks)))
        inputs = [each.detach() for each in leaves if isinstance(each, Tensor)]
        places = tuple(n for n, each in enumerate(leaves) if isinstance(each, Tensor))
        # A recording reads the tensors anew, but repeats all else: constants, and which tensors
        # need a gradient. If this changes, record a new graph.
        fixed = tuple(each.requires_grad if isinstance(each, Tensor) else each for each in leaves)

        def all_tasks(tensors: recording.Inputs) -> recording.Outputs:
            own = list(fixed)
            # The buffers that the graph reads are plain tensors.
            for place, tensor in zip(places, tensors, strict=True):
                own[place] = tensor.detach().requires_grad_(fixed[place])
            memory, matches = tree_unflatten(own, structure)
            groups = (matches[at : at + plan.tasks] for at in range(0, len(matches), plan.tasks))
            found = (self._objective.differentiate_together(each, memory, plan) for each in groups)
            return tuple(each for group in found for result in group for each in result)

        outputs = self.replayed((plan, structure, places, fixed), inputs, all_tasks)
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
        ways = partial(ways_to_measure, problem.model, problem.device, problem.config.precise)
        return Graph(objective, partial(recording.cuda_graph, device=problem.device), ways)
    recording.warn_without_graph(_WHAT, reason, _REMEDY)
    return plain
