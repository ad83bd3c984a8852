"""Division of the work among the ranks of a run.

All ranks draw the same random numbers and apply the same update, so each holds the whole state.
With ``--parallel matches``, rank ``k mod R`` computes match ``k``, and the mean is taken in the
order of the matches, so the result has the same bits as that of a single process. With
``--parallel batch``, ranks share every student step (:func:`trajmatch.ops.unroll`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from trajmatch.distill.objectives import OuterGradient
from trajmatch.distill.parameters import LABELS, learned, of_memory, values
from trajmatch.distill.problem import Problem
from trajmatch.distill.state import State
from trajmatch.errors import UserError
from trajmatch.parallel import ALONE, Ranks
from trajmatch.parallel.ranks import first_that_differs

T = TypeVar("T")


def check_division(problem: Problem, state: State, ranks: Ranks) -> None:
    """Raise UserError if there are too many ranks, or e.g. batch norm prevents sharing batches."""
    config, count = problem.config, len(state.parameters[LABELS].value)
    if ranks.size == 1:
        return
    if config.parallel == "matches":
        if config.matches < ranks.size:
            raise UserError(
                f"--parallel matches needs at least one match for each of the {ranks.size} "
                f"processes, but --matches is {config.matches}; choose --matches {ranks.size} (a "
                "different result: the mean over more segments), fewer processes, or "
                "--parallel batch"
            )
        return
    batch = min(config.batch_syn or count, count)
    if batch < ranks.size:
        raise UserError(
            f"--parallel batch needs at least one image of every batch for each process, but "
            f"batches have {batch} images and there are {ranks.size} processes; choose fewer"
        )
    if not problem.treats_images_alone:
        raise UserError(
            "--parallel batch cannot split the batches of this network, because its logits depend "
            "on the whole batch, as with batch norm; choose --parallel matches, or experts with "
            "another norm"
        )


@dataclass(frozen=True)
class Division:
    """Division of an outer iteration's tasks among ranks.

    Attributes:
        ranks: Processes of the run.
        by_batch: True if all ranks share every student step (``--parallel batch``), False if each
            rank has its own tasks.
    """

    ranks: Ranks = ALONE
    by_batch: bool = False

    @property
    def shares_steps(self) -> bool:
        """True if student steps need other ranks."""
        return self.by_batch and self.ranks.size > 1

    def own(self, draws: Sequence[T]) -> list[T]:
        """Return the tasks of this rank."""
        return list(draws) if self.by_batch else self.ranks.shard(draws)

    def gather(self, own: Sequence[OuterGradient], count: int) -> list[OuterGradient]:
        """Gather the gradients of all ``count`` tasks, in order and with equal bits on every rank.

        ``own`` has the gradients of this rank's tasks, at least one.
        """
        ranks = self.ranks
        if self.by_batch or ranks.size == 1:
            return list(own)
        rows = -(-count // ranks.size)

        def gathered(tensors: Sequence[Tensor]) -> list[Tensor]:
            # Collectives need equal shapes, so ranks with fewer tasks pad with zeros.
            missing = [torch.zeros_like(tensors[0])] * (rows - len(tensors))
            of_rank = ranks.gather(torch.stack([*tensors, *missing]))
            return [of_rank[task % ranks.size][task // ranks.size] for task in range(count)]

        sent = [
            {
                "numbers": torch.tensor([each.loss, each.meaningful], dtype=torch.float64),
                **each.gradients,
                **each.memory,
            }
            for each in own
        ]
        tensors = {name: gathered([each[name] for each in sent]) for name in sent[0]}
        gradients = []
        for task in range(count):
            found = {name: each[task] for name, each in tensors.items()}
            loss, meaningful = found.pop("numbers").tolist()
            memory = {name: found.pop(name) for name in of_memory(found)}
            gradients.append(OuterGradient(loss, found, bool(meaningful), memory))
        return gradients


def start_same(problem: Problem, state: State, ranks: Ranks) -> None:
    """Check that all ranks start the same run, then broadcast rank 0's tensors into ``state``.

    Each rank computes the initial images and labels, but expert outputs may differ in the last bit
    between machines. Raise UserError if settings, experts or checkpoints differ.
    """
    if ranks.size == 1:
        return
    ranks.barrier()  # has no time limit: one rank may read its data much more slowly
    config = problem.config
    run = [problem.identity, config.parallel, config.checkpoint_every, state.iteration]
    other = first_that_differs(ranks, [json.dumps(run, sort_keys=True)])
    if other is not None:
        raise UserError(
            f"processes 0 and {other} of this run have different settings, experts or checkpoints; "
            "start all with the same flags, and with --experts and --out in a folder that all "
            "machines share"
        )
    for tensor in _tensors(state):
        moved = tensor.to(problem.device)
        ranks.broadcast_(moved)
        tensor.copy_(moved)


def check_in_step(state: State, ranks: Ranks) -> None:
    """Raise UserError if the learned tensors of the ranks differ."""
    if ranks.size == 1:
        return
    other = first_that_differs(ranks, [each.reshape(-1) for each in _tensors(state)])
    if other is not None:
        raise UserError(
            f"after iteration {state.iteration}, processes 0 and {other} no longer have the same "
            "images; their machines may differ in processor, GPU or libraries. Continue from the "
            "last checkpoint with --resume, on machines of one kind"
        )


def _tensors(state: State) -> list[Tensor]:
    moved = [m for each in learned(state.parameters).values() for m in each.moments.values()]
    return [*values(state.parameters).values(), *moved, *state.average.values()]
