"""Start of a student: start epoch, loss factor for that epoch, and perturbed parameters."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trajmatch.errors import UserError
from trajmatch.experts.config import spans
from trajmatch.networks.flat import split_flat


@dataclass(frozen=True)
class StartEpochWindow:
    """Range ``minimum .. end - 1``, from which start epochs are drawn uniformly; the end may grow.

    MTT uses ``0 .. maximum - 1`` throughout. DATM (Guo et al., ICLR 2024) goes from easy to hard:
    ``end = min(T + floor((T+ - T) it / E), T+)`` in outer iteration ``it``.
    """

    minimum: int  # DATM: T-
    maximum: int  # final end, exclusive (DATM: T+)
    first_end: int | None = None  # end in the first iteration (DATM: T); None: maximum
    growth: int = 0  # outer iterations until the end is maximum (DATM: E)

    def end(self, iteration: int) -> int:
        """Return the end of the window in an outer iteration; the first iteration is 0."""
        if self.first_end is None or iteration >= self.growth:
            return self.maximum
        return self.first_end + (self.maximum - self.first_end) * iteration // self.growth

    def draw(self, iteration: int, generator: torch.Generator) -> int:
        """Draw the start epoch of one match in an outer iteration."""
        return int(torch.randint(self.minimum, self.end(iteration), (), generator=generator))

    def check(self, snapshots_kept: Collection[int], epochs_after: Sequence[int]) -> None:
        """Raise UserError if a match needs an epoch that is not in ``snapshots_kept``."""
        expert_epochs = epochs_after[-1]
        # A match needs its start epoch (0 epochs after the start) and all epochs that it compares.
        starts = range(self.minimum, self.maximum)
        needed = {start + after for start in starts for after in (0, *epochs_after)}
        if missing := sorted(needed - set(snapshots_kept)):
            last_start = self.maximum - 1
            raise UserError(
                f"--max-start-epoch {self.maximum} with --expert-epochs {expert_epochs} needs the "
                f"experts' parameters up to epoch {last_start} + {expert_epochs} = "
                f"{last_start + expert_epochs}, but they have epochs {spans(snapshots_kept)} "
                f"(missing: {spans(missing)}); lower one of the two, or train experts for longer"
            )


def balance(start_epoch: int, max_start_epoch: int) -> float:
    """Return ``kappa(s)``, the loss factor at start epoch ``s`` (AST, balanced inner-loop loss).

    With ``h = floor(max_start_epoch / 2)``, ``kappa(s)`` is ``log_5(s - h + 8)`` for ``s >= h`` and
    ``1 / log_5(h - s + 8)`` for smaller ``s``, as in the authors' code. Student steps are therefore
    smaller at early start epochs and larger at late ones.
    """
    beyond = start_epoch - max_start_epoch // 2
    kappa = math.log(abs(beyond) + 8, 5)
    return kappa if beyond >= 0 else 1 / kappa


def perturbed(model: nn.Module, theta: Tensor, strength: float, draw: torch.Generator) -> Tensor:
    """Return a copy of ``theta [P]`` with random noise on the convolution weights (AST).

    A weight ``W`` becomes ``W + a D * W``, where ``a`` is ``strength`` (1 in the authors' code) and
    ``D`` is standard normal noise divided by its Frobenius norm. The relative change has root mean
    square ``a / sqrt(W.numel())``. Parameters that are frozen or not 4-D stay the same. ``draw`` is
    a CPU generator.
    """
    # The weights below are views of this vector, so changing them in place changes it.
    moved = theta.clone()
    weights = split_flat(model, moved).values()
    for parameter, weight in zip(model.parameters(), weights, strict=True):
        if weight.dim() == 4 and parameter.requires_grad:
            # Drawn in float32 on the CPU: the same noise for every device and dtype.
            noise = torch.randn(weight.shape, generator=draw, dtype=torch.float32)
            noise = (noise / noise.norm()).to(weight)
            weight += strength * noise * weight
    return moved
