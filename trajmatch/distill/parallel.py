"""Division of the work among the ranks of a run.

Each rank holds the whole state: all draw the same random numbers and apply the same update. With
``--parallel matches``, rank ``k mod R`` of ``R`` ranks computes match ``k``. The mean is summed in
the order of the matches, so on the CPU the result has the same bits as with a single process. With
``--parallel batch``, ranks share every student step (:func:`trajmatch.ops.unroll`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from trajmatch import files
from trajmatch.distill.objectives import Results
from trajmatch.distill.parameters import LABELS, learned, values
from trajmatch.distill.problem import Problem
from trajmatch.distill.state import State
from trajmatch.errors import UserError
from trajmatch.parallel.ranks import ALONE, Ranks, first_that_differs

T = TypeVar("T")


def check_division(problem: Problem, state: State, ranks: Ranks) -> None:
    """Raise UserError if there are too many ranks, or if the network's batches cannot be split."""
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

    ``by_batch`` is True if all ranks share every student step (``--parallel batch``), and False if
    each rank has its own tasks.
    """

    ranks: Ranks = ALONE
    by_batch: bool = False

    @property
    def shares_steps(self) -> bool:
        """True if several ranks work on the same student step."""
        return self.by_batch and self.ranks.size > 1

    def own(self, draws: Sequence[T]) -> list[T]:
        """Return the draws of this rank's tasks."""
        return list(draws) if self.by_batch else self.ranks.shard(draws)

    def gather(self, own: Sequence[Results], count: int) -> list[Results]:
        """Return the results of all ``count`` tasks in order, with equal bits on every rank."""
        size = self.ranks.size
        if self.by_batch or size == 1:
            return list(own)
        # Collectives need equal shapes, so ranks with fewer tasks repeat one of them. Every rank
        # has at least one task (check_division).
        rows = [*own, *[own[0]] * (-(-count // size) - len(own))]
        # One tensor [rows, ...] per rank for each result: task k is row k // R of rank k mod R.
        gathered = [self.ranks.gather(torch.stack(each)) for each in zip(*rows, strict=True)]
        return [tuple(each[k % size][k // size] for each in gathered) for k in range(count)]


def start_same(problem: Problem, state: State, ranks: Ranks) -> None:
    """Copy rank 0's tensors into ``state``; UserError if the ranks do not start the same run."""
    if ranks.size == 1:
        return
    ranks.barrier()  # has no time limit: one rank may read its data much more slowly
    config = problem.config
    run = [problem.identity, config.parallel, config.checkpoint_every, state.iteration]
    if (other := first_that_differs(ranks, files.json_checksum({"run": run}))) is not None:
        raise UserError(
            f"processes 0 and {other} of this run have different settings, experts or checkpoints; "
            "start all with the same flags, and with --experts and --out in a folder that all "
            "machines share"
        )
    # Each rank computed the initial images and labels, but logits of experts may differ in the last
    # bit between machines. Collectives need tensors on the device of the process group.
    for tensor in _tensors(state):
        moved = tensor.to(problem.device)
        ranks.broadcast_(moved)
        tensor.copy_(moved)


def check_in_step(state: State, ranks: Ranks) -> None:
    """Raise UserError if the tensors of the state differ between ranks."""
    if ranks.size == 1:
        return
    tensors = {str(index): each for index, each in enumerate(_tensors(state))}
    if (other := first_that_differs(ranks, files.tensor_checksum(tensors))) is not None:
        raise UserError(
            f"after iteration {state.iteration}, processes 0 and {other} no longer have the same "
            "images; their machines may differ in processor, GPU or libraries. Continue from the "
            "last checkpoint with --resume, on machines of one kind"
        )


def _tensors(state: State) -> list[Tensor]:
    moved = [m for each in learned(state.parameters).values() for m in each.moments.values()]
    return [*values(state.parameters).values(), *moved, *state.average.values()]
