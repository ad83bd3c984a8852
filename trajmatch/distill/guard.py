"""Refuses updates that are not finite or explode, and ends a run that makes nothing else."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from trajmatch.distill.outer import OuterGradient, Update
from trajmatch.distill.state import USUAL, State
from trajmatch.errors import UserError

#: So many refusals in a row end the run: by then it does not recover by itself.
MAX_REFUSALS = 10

#: So many updates in a row left out for their loss end the run. A few are what the limit is for:
#: segments that no step size fits.
MAX_SKIPS = 100

#: A student that stays where it is has the matching loss 1: this one went off a hundred times as
#: far as the expert did, and its gradient points nowhere. Below, a step size may still be learned.
MOST_LOSS = 1e4

#: So many times their own size, or that of images of variance 1, images change in no update that
#: leads anywhere; nor does the step size become so many times larger or smaller.
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
        lasting: Whether many of them in a row show that the run does not recover.
    """

    cause: str
    remedy: str
    lasting: bool = True


def find_fault(gradient: OuterGradient, update: Update, state: State) -> Fault | None:
    """Looks for what is not finite, or explodes, in one outer iteration.

    Args:
        gradient: Loss and gradients of the iteration.
        update: What would come of them.
        state: What they were taken at.

    Returns:
        The first fault found, or ``None`` where the update is sound.
    """
    if gradient.stands_still:
        return Fault(
            "the expert does not move between start and target epoch",
            "choose other start epochs (--min-start-epoch, --max-start-epoch) or other experts",
        )
    for what, finite in (
        ("the matching loss", math.isfinite(gradient.loss)),
        ("the gradient of the images", bool(gradient.images.isfinite().all())),
        ("the gradient of the step size", math.isfinite(gradient.step_size)),
        ("the gradient of the labels", _finite(gradient.labels)),
    ):
        if not finite:
            return Fault(f"{what} is not finite", _remedy(state))
    if gradient.loss > MOST_LOSS:
        return Fault(f"the matching loss is {gradient.loss:.3g}", _remedy(state))
    if not (update.images.isfinite().all() and update.buffer.isfinite().all()):
        return Fault("the images would not be finite", _lower("--lr-img"))
    if not (_finite(update.labels) and _finite(update.label_buffer)):
        return Fault("the labels would not be finite", _lower("--lr-label"))
    before, after = state.step_size.value, update.step_size.value
    if not _SMALLEST <= after <= _LARGEST:
        return Fault(f"the step size would become {after:.4g}", _lower("--lr-lr"))
    if not before / MOST_CHANGE <= after <= before * MOST_CHANGE:
        return Fault(f"the step size would go from {before:.4g} to {after:.4g}", _lower("--lr-lr"))
    for what, old, new, flag in (
        ("images", state.synthetic.images, update.images, "--lr-img"),
        ("labels", state.synthetic.labels, update.labels, "--lr-label"),
    ):
        if new is not None and (change := _change(old, new)) > MOST_CHANGE:
            return Fault(f"the {what} would change by {change:.3g} times their size", _lower(flag))
    return None


def find_spike(gradient: OuterGradient, state: State, limit: float) -> Fault | None:
    """Looks for a gradient that is far larger than those before it.

    Now and then a small change of the images changes where many student steps end by leaps, at a
    loss like any other. That gradient is hundreds of times as large as its neighbours, and one
    update along it undoes what hundreds have done. If gradients stay that large, they become usual.

    Args:
        gradient: That of the iteration, finite.
        state: Has the norms of those before, and gets this one's.
        limit: How many times their median is unusual.

    Returns:
        The fault, or ``None``.
    """
    norm = float(torch.linalg.vector_norm(gradient.images, dtype=torch.float64))
    before = state.gradient_norms
    usual = median(before) if len(before) >= FEWEST else 0.0
    state.gradient_norms = [*before, norm][-USUAL:]
    if usual > 0 and norm > limit * usual:
        times = norm / usual
        cause = f"the gradient of the images is {times:.3g} times as large as usual"
        return Fault(cause, _lower("--lr-img"), lasting=False)
    return None


def check_refusals(fault: Fault, state: State) -> None:
    """Ends the run after too many refusals in a row.

    Args:
        fault: Why the last update was refused.
        state: With the number of refusals.

    Raises:
        UserError: There were :data:`MAX_REFUSALS`.
    """
    if state.refusals >= MAX_REFUSALS:
        raise UserError(
            f"stopped at iteration {state.iteration}: the last {state.refusals} updates were "
            f"refused, because {fault.cause} (step size {state.step_size.value:.4g}); "
            f"{fault.remedy}. What was written before is whole"
        )


def check_skips(limit: float, loss: float, state: State) -> None:
    """Ends the run where the matching loss stays above the limit.

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
            f"{loss:.4g}, with step size {state.step_size.value:.4g}). A loss of 1 is that of a "
            "student that stays where it is: lower --lr-init, raise --skip-above, or choose other "
            "start epochs. What was written before is whole"
        )


def _finite(tensor: Tensor | None) -> bool:
    return tensor is None or bool(tensor.isfinite().all())


def _change(old: Tensor, new: Tensor) -> float:
    """How much numbers change, relative to what they are, or to numbers of variance 1."""
    return float((new - old).norm() / old.norm().clamp(min=math.sqrt(old.numel())))


def _lower(flag: str) -> str:
    return f"lower {flag}"


def _remedy(state: State) -> str:
    """A student that diverges does so because of its step size, or else because of its images."""
    if state.applied == 0:
        return f"lower --lr-init (now {state.lr_init:.4g})"
    if state.step_size.value > 2 * state.lr_init:
        return f"lower --lr-lr (the step size has grown from {state.lr_init:.4g})"
    return "lower --lr-img"
