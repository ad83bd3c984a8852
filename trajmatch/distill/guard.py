"""Guard of a run: refuses non-finite or exploding updates, and ends a run that cannot recover."""

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

#: Number of consecutive refused updates after which the run ends.
MAX_REFUSALS = 10

#: Number of consecutive updates skipped by --skip-above after which the run ends. A few skips are
#: normal, because no step size suits every segment.
MAX_SKIPS = 100

#: Largest accepted loss. A student that does not move has matching loss 1. At a loss of 1e4 it ends
#: 100 times as far from the expert as it started, and its gradient is useless. At a lower loss, the
#: step size may still recover.
MOST_LOSS = 1e4

#: Largest accepted change in one update: a factor for the step size; a relative distance for
#: images and labels (see _change).
MOST_CHANGE = 10.0

#: Minimum number of recorded gradient norms for detecting a spike.
FEWEST = 20

# The student computes in float32, so the step size must be a normal number of that type.
_SMALLEST = torch.finfo(torch.float32).tiny
_LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Fault:
    """Reason for a refused update; ``lasting`` faults count towards :data:`MAX_REFUSALS`."""

    cause: str
    remedy: str
    lasting: bool = True


def find_fault(
    gradient: OuterGradient, update: Mapping[str, OuterParameter], state: State, lr_init: float
) -> Fault | None:
    """Return a Fault if the loss, a gradient or the update is not finite or explodes, else None.

    ``update`` holds the outer parameters after the update, ``state`` those before it. ``lr_init``,
    the initial step size, is used for the advice in the Fault.
    """
    # From cause to effect, so that the message names the first thing that went wrong.
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
    if new.optimiser is None:  # a constant; infinity is allowed
        undefined = Fault(f"{_words(name)} would be NaN", "check your own matching term")
        return undefined if new.value.isnan().any() else None
    before, after, remedy = old.value, new.value, f"lower {new.optimiser.flag}"
    # The comparisons below are negated (`not >=`), because a comparison with NaN is false.
    if new.optimiser.positive:
        if not ((after >= _SMALLEST) & (after <= _LARGEST)).all():
            return Fault(f"the {_words(name)} would become {_shown(after)}", remedy)
        if not ((after >= before / MOST_CHANGE) & (after <= before * MOST_CHANGE)).all():
            cause = f"the {_words(name)} would go from {_shown(before)} to {_shown(after)}"
            return Fault(cause, remedy)
        return None
    # A moment that is not finite would spoil all later updates.
    if not all(each.isfinite().all() for each in (after, *new.moments.values())):
        return Fault(f"the {_words(name)} would not be finite", remedy)
    if (change := _change(before, after)) > MOST_CHANGE:
        return Fault(f"the {_words(name)} would change by {change:.3g} times their size", remedy)
    return None


def find_spike(gradient: OuterGradient, state: State, limit: float) -> Fault | None:
    """Return a Fault if the images' gradient norm exceeds ``limit`` times the recent median.

    The norm, which must be finite, is recorded in ``state.gradient_norms``.
    """
    # For some images, a small change sends the student to quite different parameters, although the
    # loss is ordinary. There the gradient is hundreds of times as large as in neighbouring
    # iterations, and one update along it would undo hundreds of others.
    images = [gradient.gradients[name] for name in of_images(gradient.gradients)]
    norms = [torch.linalg.vector_norm(each, dtype=torch.float64) for each in images]
    norm = math.hypot(*map(float, norms))
    # Norms of spikes are recorded, too, so that the median adapts if gradients stay large.
    before = state.gradient_norms
    usual = median(before) if len(before) >= FEWEST else 0.0
    state.gradient_norms = [*before, norm][-USUAL:]
    if usual > 0 and norm > limit * usual:
        cause = f"the gradient of the images is {norm / usual:.3g} times as large as usual"
        return Fault(cause, "lower --lr-img", lasting=False)
    return None


def check_refusals(fault: Fault, state: State) -> None:
    """Raise UserError after :data:`MAX_REFUSALS` refusals in a row."""
    if state.refusals >= MAX_REFUSALS:
        raise UserError(
            f"stopped at iteration {state.iteration}: the last {state.refusals} updates were "
            f"refused, because {fault.cause} (step size {state.step_size:.4g}); "
            f"{fault.remedy}. Files written before are intact"
        )


def check_skips(limit: float, loss: float, state: State) -> None:
    """Raise UserError after :data:`MAX_SKIPS` updates in a row with a loss above ``limit``."""
    if state.skips >= MAX_SKIPS:
        raise UserError(
            f"stopped at iteration {state.iteration}: the last {state.skips} updates were "
            f"skipped, because the matching loss stayed above --skip-above {limit:g} (it is "
            f"{loss:.4g}, with step size {state.step_size:.4g}). A student that stays where it is "
            "has a loss of 1 (--terms final). If the loss is above 1, lower --lr-init; if it is "
            "near 1, raise --lr-init or --student-steps. Or raise --skip-above, or choose other "
            "start epochs. Files written before are intact"
        )


def _change(old: Tensor, new: Tensor) -> float:
    """Return ``|new - old| / max(|old|, sqrt(n))``; ``n`` is the number of values."""
    # A tensor with entries of mean square 1 has the norm sqrt(n).
    return float((new - old).norm() / old.norm().clamp(min=math.sqrt(old.numel())))


def _words(name: str) -> str:
    return name.replace("_", " ")


def _shown(value: Tensor) -> str:
    """Format a number, or the range of several, for a message."""
    low, high = value.min().item(), value.max().item()
    return f"{low:.4g}" if value.dim() == 0 else f"{low:.4g} to {high:.4g}"


def _remedy(state: State, lr_init: float) -> str:
    """Return advice: lower --lr-init or --lr-lr if the step size is to blame, else --lr-img."""
    # Without an applied update, only the initial step size can be at fault.
    if state.applied == 0:
        return f"lower --lr-init (now {lr_init:.4g})"
    if state.step_size > 2 * lr_init:
        return f"lower --lr-lr (the step size has grown from {lr_init:.4g})"
    return "lower --lr-img"
