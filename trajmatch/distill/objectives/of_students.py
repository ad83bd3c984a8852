"""Base class of objectives that train students, and the batches of a student."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor

from trajmatch import ops
from trajmatch.distill.objectives import Objective, Plan
from trajmatch.distill.parameters import STEP_SIZE
from trajmatch.distill.setup import Setup
from trajmatch.images.parametrisation import Tensors
from trajmatch.ops import Shards


@dataclass(frozen=True, kw_only=True)
class OfStudents(Objective):
    """Objective whose tasks train students, each batch divided among ``shards``."""

    setup: Setup
    shards: Shards | None = None

    def training(self, parameters: Tensors, plan: Plan) -> partial[Any]:
        """Bind :func:`trajmatch.ops.unroll` to the synthetic set and the settings of the run."""
        setup, settings = self.setup, self.setup.config
        images, labels = setup.synthetic_set(parameters)
        decay = settings.student_weight_decay
        optimiser: ops.SGD | ops.Adam = ops.Adam(weight_decay=decay)
        if settings.student_optimiser == "sgd":
            optimiser = ops.SGD(settings.student_momentum, weight_decay=decay)
        return partial(
            ops.unroll,
            setup.model,
            images=images,
            labels=labels,
            lr=parameters[STEP_SIZE].to(images.dtype),
            loss=setup.training.loss,
            optimiser=optimiser,
            precise=settings.precise,
            exact=settings.gradient == "exact",
            tape_bytes=plan.tape_bytes,
            micro_batch=plan.micro_batch,
            shards=self.shards,
        )

    def shared(self, shards: Shards) -> Self:
        """Return a copy that divides every batch among processes."""
        return replace(self, shards=shards)


def student_batches(
    count: int, batch_size: int | None, steps: int, generator: torch.Generator
) -> list[Tensor]:
    """Draw ``steps`` index vectors ``[B]`` (int64) by cutting up permutations of the images.

    If the batch size does not divide ``count``, the first batch of each permutation is short, as
    in the code of MTT, FTD, AST and DATM. A size of None or above ``count`` means all images.
    """
    size = min(batch_size or count, count)
    whole, short = divmod(count, size)
    sizes = [short] * (short > 0) + [size] * whole
    batches: list[Tensor] = []
    # Steps may take several permutations; leftover batches of the last are dropped.
    while len(batches) < steps:
        batches.extend(torch.randperm(count, generator=generator).split(sizes))
    return batches[:steps]
