"""One outer iteration: draw tasks, differentiate, and update the parameters if that is sound."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from trajmatch.distill.gradients import one_by_one
from trajmatch.distill.guard import Fault, find_fault, find_spike
from trajmatch.distill.objectives import Draw, OuterGradient, Plan, Results, mean_gradient, read
from trajmatch.distill.parallel import Division
from trajmatch.distill.parameters import LABELS, OuterParameter, leaves, values
from trajmatch.distill.problem import Problem
from trajmatch.distill.state import Prepared, State
from trajmatch.images.parametrisation import Tensors

#: Function from this rank's tasks and the outer parameters to the results of the tasks.
Compute = Callable[[Sequence[Any], Tensors], list[Results]]


def outer_iteration(
    problem: Problem, state: State, compute: Compute | None = None, division: Division | None = None
) -> tuple[dict[str, Any], Fault | None]:
    """Advance ``state`` in place by one outer iteration, and make the tasks of the next one.

    ``compute`` calculates the gradients, by default one task after another. ``division`` assigns
    tasks to ranks; by default there is a single process.

    Returns:
        Entries for the log, and the Fault if the update was refused. The entries are
        ``iteration``, ``loss``, ``step_size``, ``refused`` (the cause or None) and the random
        choices; for several tasks also ``losses``; with ``--skip-above`` also ``skipped``.
    """
    config, division = problem.config, division or Division()
    compute = compute or partial(one_by_one, problem.objective, plan=Plan())
    # Constants that the objective recomputes now and then, such as the gradient mask. The ranks
    # must not differ in a bit, so all take those of rank 0.
    renewed = problem.objective.renewed(state.iteration, values(state.parameters))
    for name, value in renewed.items():
        division.ranks.broadcast_(value)
        state.parameters[name] = OuterParameter.new(value)
    ready = state.prepared or _prepare(problem, state, division, state.iteration)
    draws, parameters = ready.draws, leaves(state.parameters, problem.device)
    results = compute(ready.tasks, parameters)
    # Make the next tasks now: the device may still be computing, and `read` waits for it.
    state.prepared = None
    if state.iteration + 1 < config.iterations:
        state.prepared = _prepare(problem, state, division, state.iteration + 1)
    gradients = read(division.gather(results, len(draws)), parameters)
    gradient = mean_gradient(gradients)
    update = {
        name: parameter.updated(gradient.gradients.get(name))
        for name, parameter in state.parameters.items()
    }
    # The objective's memory has no optimiser: the tasks return its next values.
    for name, value in gradient.memory.items():
        update[name] = OuterParameter.new(value.to(update[name].value))
    fault = find_fault(gradient, update, state, problem.lr_init)
    # Look for a spike last, because find_spike records the norm, which has to be finite.
    if fault is None and config.spike_above is not None:
        fault = find_spike(gradient, state, config.spike_above)
    skipped = config.skip_above is not None and gradient.loss > config.skip_above
    # Iterations without an update count as well. A refused update never counts as skipped.
    state.iteration += 1
    if fault is not None:
        state.refusals += fault.lasting  # a spike neither counts nor resets the count
    elif skipped:
        state.refusals, state.skips = 0, state.skips + 1
    else:
        state.parameters = update
        # Moving average of FTD, without bias correction: after k updates the initial images still
        # have the weight ema^k.
        state.average = {
            name: config.ema * average + (1.0 - config.ema) * update[name].value
            for name, average in state.average.items()
        }
        state.applied += 1
        state.refusals = state.skips = 0
    numbers = {
        "iteration": state.iteration,
        "loss": gradient.loss,
        "step_size": state.step_size,
        **_drawn(draws, gradients),
        "refused": None if fault is None else fault.cause,
    }
    if config.skip_above is not None:
        numbers["skipped"] = fault is None and skipped
    return numbers, fault


def _prepare(problem: Problem, state: State, division: Division, iteration: int) -> Prepared:
    """Draw and make the tasks of an iteration."""
    images, before = len(state.parameters[LABELS].value), state.draws.state_dict()
    # Every rank draws all tasks, so the random streams stay equal.
    draws = [state.draws.draw(iteration, k, images) for k in range(problem.config.matches)]
    return Prepared(before, draws, [problem.objective.task(each) for each in division.own(draws)])


def _drawn(draws: Sequence[Draw], gradients: Sequence[OuterGradient]) -> dict[str, Any]:
    """Return the random choices to log; with several tasks as lists, and the losses as well."""
    if len(draws) == 1:
        return draws[0].logged()
    logged = [draw.logged() for draw in draws]
    lists: dict[str, Any] = {f"{name}s": [each[name] for each in logged] for name in logged[0]}
    return {**lists, "losses": [gradient.loss for gradient in gradients]}
