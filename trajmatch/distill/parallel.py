"""What several processes of a run divide, exchange and compare.

All of them draw the same random numbers and apply the same update, so that each holds the state of
the run. With ``--parallel matches`` match ``k`` of an outer iteration is that of process ``k mod
R``, and the gradients are averaged in the order of the matches: the bits of one process. With
``--parallel batch`` every student step is shared (:func:`trajmatch.ops.unroll`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from torch import Tensor

from trajmatch import ops
from trajmatch.distill.outer import OuterGradient
from trajmatch.distill.problem import Problem
from trajmatch.distill.state import State
from trajmatch.errors import UserError
from trajmatch.networks.independence import treats_images_alone
from trajmatch.parallel import Ranks
from trajmatch.parallel.ranks import first_that_differs


def check_division(problem: Problem, state: State, ranks: Ranks) -> None:
    """Makes sure that the work can be divided as the configuration says.

    Args:
        problem: What the run works on.
        state: Has the images.
        ranks: The processes of the run.

    Raises:
        UserError: There are more processes than parts, or the network mixes the images of a batch.
    """
    config, images = problem.config, state.synthetic.images
    if ranks.size == 1:
        return
    if config.parallel == "matches":
        if config.matches < ranks.size:
            raise UserError(
                f"--parallel matches gives each process a match or more, but --matches "
                f"{config.matches} is below the {ranks.size} processes; choose --matches "
                f"{ranks.size} (another result: the mean over more segments), fewer processes, or "
                "--parallel batch"
            )
        return
    batch = min(config.batch_syn or len(images), len(images))
    if batch < ranks.size:
        raise UserError(
            f"--parallel batch gives each process an image or more of every batch, but batches "
            f"have {batch} images and there are {ranks.size} processes; choose fewer"
        )
    if ops.engine_for(problem.model) == "autograd":
        theta = problem.store.snapshot(0, config.min_start_epoch).to(problem.device)
        if not treats_images_alone(problem.model, theta, images):
            raise UserError(
                "--parallel batch cannot share the batches of this network: its images depend on "
                "each other, as batch norm's do through the statistics of the batch, so that the "
                "parts would train another student; choose --parallel matches, or experts with "
                "another norm"
            )


def gather_gradients(ranks: Ranks, own: Sequence[OuterGradient], count: int) -> list[OuterGradient]:
    """The gradients of all matches, from the processes that made them.

    Args:
        ranks: The processes of the run.
        own: Those of the matches that :meth:`Ranks.share` gave this process; at least one.
        count: Matches in all.

    Returns:
        One for each match, in their order, the same bits in every process.
    """
    if ranks.size == 1:
        return list(own)
    rows = -(-count // ranks.size)
    numbers = torch.zeros(rows, 3, dtype=torch.float64)
    for row, gradient in enumerate(own):
        numbers[row] = torch.tensor(
            [gradient.loss, gradient.step_size, gradient.stands_still], dtype=torch.float64
        )
    told = ranks.gather(numbers)
    images = _gathered(ranks, [gradient.images for gradient in own], rows)
    labels = _gathered(ranks, [each.labels for each in own if each.labels is not None], rows)
    gradients = []
    for match in range(count):
        row, rank = divmod(match, ranks.size)
        loss, step_size, stands_still = told[rank][row].tolist()
        gradients.append(
            OuterGradient(
                loss=loss,
                images=images[rank][row],
                step_size=step_size,
                stands_still=bool(stands_still),
                labels=labels[rank][row] if labels else None,
            )
        )
    return gradients


def _gathered(ranks: Ranks, own: Sequence[Tensor], rows: int) -> list[Tensor]:
    """Stacked tensors of all processes ``[rows, ...]``, with zeros where one has fewer."""
    if not own:
        return []
    missing = [torch.zeros_like(own[0])] * (rows - len(own))
    return ranks.gather(torch.stack([*own, *missing]))


def start_same(problem: Problem, state: State, ranks: Ranks) -> None:
    """Makes sure that all processes begin the same run, and gives them the writer's images.

    Each has made the first images and labels for itself, but what experts say of images may differ
    in the last bit from one machine to another.

    Args:
        problem: What the run works on.
        state: The state at the beginning; images, labels and their buffers are changed.
        ranks: The processes of the run.

    Raises:
        UserError: One was given other settings, or reads other files.
    """
    if ranks.size == 1:
        return
    ranks.barrier()  # without a limit: to read the data takes one longer than another
    config = problem.config
    run = [problem.identity, config.parallel, config.checkpoint_every, state.iteration]
    other = first_that_differs(ranks, [json.dumps(run, sort_keys=True)])
    if other is not None:
        raise UserError(
            f"processes 0 and {other} of this run have other settings, experts or checkpoints; "
            "start all with the same flags, and with --experts and --out in a folder that all "
            "machines share"
        )
    for tensor in _tensors(state):
        ranks.broadcast_(tensor)


def check_in_step(state: State, ranks: Ranks) -> None:
    """Makes sure that all processes hold the same images, labels and step size.

    Args:
        state: That of this process.
        ranks: The processes of the run.

    Raises:
        UserError: They do not.
    """
    if ranks.size == 1:
        return
    numbers = torch.tensor([state.step_size.value, state.step_size.buffer], dtype=torch.float64)
    other = first_that_differs(ranks, [*_tensors(state), numbers])
    if other is not None:
        raise UserError(
            f"after iteration {state.iteration}, processes 0 and {other} no longer have the same "
            "images; their machines may differ in processor, GPU or libraries. Go on from the last "
            "checkpoint with --resume, on machines of one kind"
        )


def _tensors(state: State) -> list[Tensor]:
    optional = (state.label_buffer, state.average)
    present = [each for each in optional if each is not None]
    return [state.synthetic.images, state.synthetic.labels, state.buffer, *present]
