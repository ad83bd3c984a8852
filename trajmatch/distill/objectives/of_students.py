"""The base of objectives that train students on the synthetic set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

from torch import Tensor

from trajmatch import ops
from trajmatch.distill.objectives import Objective, Plan
from trajmatch.distill.parameters import STEP_SIZE
from trajmatch.distill.setup import Setup
from trajmatch.ops import Shards


@dataclass(frozen=True, kw_only=True)
class OfStudents(Objective):
    """An objective whose tasks train students.

    Attributes:
        setup: Settings, network, data and augmentation of the run.
        shards: Processes that share every batch; None: no sharing.
    """

    setup: Setup
    shards: Shards | None = None

    def training(self, parameters: Mapping[str, Tensor], plan: Plan) -> partial[Any]:
        """Return :func:`trajmatch.ops.unroll` on the synthetic set of some outer parameters."""
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
        """Return the objective with student steps that processes share."""
        return replace(self, shards=shards)
