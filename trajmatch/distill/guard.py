"""The guard: updates that are not finite or explode are refused, and end a hopeless run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from trajmatch.distill.objectives import OuterGradient
from trajmatch.distill.parameters import OuterParameter, of_images
from trajmatch.distill.state import USUAL, State
from trajmatch.errors import UserError

#: Refusals in a row that end the run: by then it does not recover by itself.
MAX_REFUSALS = 10

#: Updates in a row left out for their loss that end the run. The limit is meant for a few of them:
#: segments that no step size fits.
MAX_SKIPS = 100

#: A student that stays where it is has the matching loss 1: this one went off a hundred times as
#: far as the expert did, and its gradient points nowhere. Below, a step size may still be learned.
MOST_LOSS = 1e4

#: Largest useful change in one update: of the images relative to their own size, or to images of
#: variance 1, and of the step size as a factor.
MOST_CHANGE = 10.0

#: Gradients that must have been there before one of them can be unusual.
FEWEST = 20

_SMALLEST = torch.finfo(torch.float32).tiny
_LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Fault:
    """Why an update was refused.

    Attributes:
        cause: What went wrong, as a clause.
        remedy: What to do about it.
        lasting: True if many of them in a row show that the run does not recover.
    """

    cause: str
    remedy: str
    lasting: bool = True


def find_fault(
    gradient: OuterGradient, update: Mapping[str, OuterParameter], state: State, lr_init: float
) -> Fault | None:
    """Look for a loss, gradient or update that is not finite or explodes.

    Args:
        gradient: Loss and gradients of the iteration.
        update: The parameters that would come of them.
        state: The state that they were taken at.
        lr_init: Step size at the beginning of the run.

    Returns:
        The first fault found, or ``None`` where the update is sound.
    """
    if not gradient.meaningful:
        return Fault(
            "the expert does not move between start and target epoch",
            "choose other start epochs (--min-start-epoch, --max-start-epoch) or other experts",
        )
    if not math.isfinite(gradient.loss):
        return Fault("the loss is not finite", _remedy(state, lr_init))
    for name, each in gradient.gradients.items():
        if not each.isfinite().all():
            cause = f"the gradient of the {_words(name)} is not finite"
            return Fault(cause, _remedy(state, lr_init))
    if gradient.loss > MOST_LOSS:
        return Fault(f"the loss is {gradient.loss:.3g}", _remedy(state, lr_init))
    faults = (_fault_of(name, state.parameters[name], new) for name, new in update.items())
    return next((fault for fault in faults if fault), None)


def _fault_of(name: str, old: OuterParameter, new: OuterParameter) -> Fault | None:
    """Return the fault of one parameter's update."""
    if new.optimiser is None:
        undefined = Fault(f"{_words(name)} would be NaN", "see the matching term of your own")
        return undefined if new.value.isnan().any() else None
    before, after, remedy = old.value, new.value, f"lower {new.optimiser.flag}"
    if new.optimiser.positive:
        if not ((after >= _SMALLEST) & (after <= _LARGEST)).all():
            return Fault(f"the {_words(name)} would become {_shown(after)}", remedy)
        if not ((after >= before / MOST_CHANGE) & (after <= before * MOST_CHANGE)).all():
            cause = f"the {_words(name)} would go from {_shown(before)} to {_shown(after)}"
            return Fault(cause, remedy)
        return None
    if not all(each.isfinite().all() for each in (after, *new.moments.values())):
        return Fault(f"the {_words(name)} would not be finite", remedy)
    if (change := _change(before, after)) > MOST_CHANGE:
        return Fault(f"the {_words(name)} would change by {change:.3g} times their size", remedy)
    return None


def find_spike(gradient: OuterGradient, state: State, limit: float) -> Fault | None:
    """Look for a gradient of the images that is far larger than those before it.

    Now and then a small change of the images changes abruptly where many student steps end, at a
    loss like any other. That gradient is hundreds of times as large as its neighbours, and one
    update along it undoes hundreds of others. If gradients stay that large, they become usual.

    Args:
        gradient: The gradient of the iteration, finite.
        state: Has the norms of those before, and gets this one's.
        limit: How many times their median is unusual.

    Returns:
        The fault, or ``None``.
    """
    images = [gradient.gradients[name] for name in of_images(gradient.gradients)]
    norms = [torch.linalg.vector_norm(each, dtype=torch.float64) for each in images]
    norm = math.hypot(*map(float, norms))
    before = state.gradient_norms
    usual = median(before) if len(before) >= FEWEST else 0.0
    state.gradient_norms = [*before, norm][-USUAL:]
    if usual > 0 and norm > limit * usual:
        times = norm / usual
        cause = f"the gradient of the images is {times:.3g} times as large as usual"
        return Fault(cause, "lower --lr-img", lasting=False)
    return None


def check_refusals(fault: Fault, state: State) -> None:
    """End the run after too many refusals in a row.

    Args:
        fault: Why the last update was refused.
        state: With the number of refusals.

    Raises:
        UserError: There were :data:`MAX_REFUSALS`.
    """
    if state.refusals >= MAX_REFUSALS:
        raise UserError(
            f"stopped at iteration {state.iteration}: the last {state.refusals} updates were "
            f"refused, because {fault.cause} (step size {state.step_size:.4g}); "
            f"{fault.remedy}. What was written before is whole"
        )


def check_skips(limit: float, loss: float, state: State) -> None:
    """End the run where the matching loss stays above the limit.

    Args:
        limit: The loss above which updates are left out.
        loss: That of the last iteration.
        state: With the number of updates left out in a row.

    Raises:
        UserError: There were :data:`MAX_SKIPS`.
    """
    if state.skips >= MAX_SKIPS:
        raise UserError(
            f"stopped at iteration {state.iteration}: the last {state.skips} updates were left "
            f"out, because the matching loss stays above --skip-above {limit:g} (it is "
            f"{loss:.4g}, with step size {state.step_size:.4g}). A loss of 1 is that of a "
            "student that stays where it is: lower --lr-init, raise --skip-above, or choose other "
            "start epochs. What was written before is whole"
        )


def _change(old: Tensor, new: Tensor) -> float:
    """Return the change relative to the size of the numbers, or to numbers of variance 1."""
    return float((new - old).norm() / old.norm().clamp(min=math.sqrt(old.numel())))


def _words(name: str) -> str:
    return name.replace("_", " ")


def _shown(value: Tensor) -> str:
    """Return a number, or the least and the largest of several, for a message."""
    low, high = value.min().item(), value.max().item()
    return f"{low:.4g}" if value.dim() == 0 else f"{low:.4g} to {high:.4g}"


def _remedy(state: State, lr_init: float) -> str:
    """A student that diverges does so because of its step size, or else because of its images."""
    if state.applied == 0:
        return f"lower --lr-init (now {lr_init:.4g})"
    if state.step_size > 2 * lr_init:
        return f"lower --lr-lr (the step size has grown from {lr_init:.4g})"
    return "lower --lr-img"
