"""The training of experts: plain SGD on the real images, with a snapshot after every epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from trajmatch import networks
from trajmatch.data import Dataset, normaliser
from trajmatch.errors import UserError
from trajmatch.evaluate.measure import accuracy
from trajmatch.experts.epoch import EpochDraws
from trajmatch.experts.lockstep import steps_for
from trajmatch.experts.step import ExpertState, ExpertStep
from trajmatch.random import generator

#: Snapshots ``[epochs + 1, P]``, float32, on the CPU, row 0 the initialisation; and the metrics
#: that :meth:`trajmatch.experts.Store.metrics` lists.
Trajectory = tuple[Tensor, dict[str, Any]]


def train_expert(
    manifest: dict[str, Any], training: Dataset, expert: int, device: str | torch.device = "cpu"
) -> Trajectory:
    """Trains one expert: :func:`train_lockstep` of one.

    Args:
        manifest: Manifest of the store.
        training: What the expert sees.
        expert: Its number.
        device: Where to train.

    Returns:
        Its trajectory and metrics.

    Raises:
        UserError: The loss or a parameter is no longer finite.
    """
    return train_lockstep(manifest, training, [expert], device)[0]


def train_lockstep(
    manifest: dict[str, Any],
    training: Dataset,
    experts: Sequence[int],
    device: str | torch.device = "cpu",
    on_epoch: Callable[[int, float], None] = lambda expert, loss: None,
) -> list[Trajectory]:
    """Trains experts (MTT, ``buffer.py``), each step of all of them together.

    Every epoch visits each image once, augmented by DSA. An expert is a function of the manifest,
    the images and its number alone, not of the experts beside it: initialisation, batch order and
    augmentation draw from generators of its own. On a CPU the sums inside a convolution depend on
    the number of threads in the last bits, so callers that promise equal bytes train every expert
    on the same number (:func:`trajmatch.experts.train_experts`: one).

    Args:
        manifest: Manifest of the store; its ``network``, ``recipe`` and ``seed`` are used.
        training: What the experts see. Images stay uint8 until they are in a batch.
        experts: Their numbers.
        device: Where to train.
        on_epoch: Called with the expert's number and its mean training loss after every epoch.

    Returns:
        The trajectory and the metrics of each expert.

    Raises:
        UserError: A loss or a parameter is no longer finite.
    """
    recipe, seed = manifest["recipe"], manifest["seed"]
    model = networks.build(manifest["network"]).to(device)
    states = []
    for expert in experts:
        networks.initialise(model, generator(seed, "expert", expert, "initialisation"))
        states.append(ExpertState.begin(networks.flat_parameters(model)))
    take_steps = steps_for(
        ExpertStep(
            model,
            # On a GPU the images lie there as uint8: normalised and augmented there, by the batch.
            training.train_images.to(device),
            training.train_labels.to(device),
            normaliser(training.mean, training.std, device),
            recipe["momentum"],
            recipe["weight_decay"],
        ),
        states,
        torch.device(device),
    )
    count = len(training.train_labels)
    draws = EpochDraws(recipe, seed, experts, training.train_images.shape)
    snapshots = [torch.empty(recipe["epochs"] + 1, len(state.theta)) for state in states]
    losses: list[list[float]] = [[] for _ in experts]
    _keep(snapshots, 0, states)
    drawn = draws.draw()
    with torch.no_grad():
        for epoch in range(1, recipe["epochs"] + 1):
            totals = torch.zeros(len(experts), dtype=torch.float64, device=device)
            for batch in drawn.to(device).batches(recipe["batch_size"]):
                totals += take_steps(batch) * batch.indices.shape[1]
            if epoch < recipe["epochs"]:
                drawn = draws.draw()  # while a GPU still takes the steps
            _keep(snapshots, epoch, states)
            for index, (expert, total) in enumerate(zip(experts, totals.tolist(), strict=True)):
                losses[index].append(total / count)
                _check_finite(expert, epoch, losses[index][-1], states[index].theta, recipe["lr"])
                on_epoch(expert, losses[index][-1])
    return [
        (own, _metrics(model, state.theta, training, own, own_losses))
        for state, own, own_losses in zip(states, snapshots, losses, strict=True)
    ]


def _keep(snapshots: Sequence[Tensor], epoch: int, states: Sequence[ExpertState]) -> None:
    """Writes the parameters of each expert after an epoch into its ``[epochs + 1, P]``."""
    for own, state in zip(snapshots, states, strict=True):
        own[epoch] = state.theta


def _metrics(
    model: torch.nn.Module,
    theta: Tensor,
    training: Dataset,
    snapshots: Tensor,
    losses: Sequence[float],
) -> dict[str, Any]:
    networks.load_flat_parameters(model, theta)
    return {
        "train_loss": list(losses),
        "displacement": snapshots.diff(dim=0).norm(dim=1, dtype=torch.float64).tolist(),
        "test_accuracy": accuracy(
            model, training.test_images, training.test_labels, normalise=training.normalise
        ),
    }


def _check_finite(expert: int, epoch: int, loss: float, theta: Tensor, lr: float) -> None:
    if not (torch.isfinite(theta).all() and torch.isfinite(torch.tensor(loss))):
        raise UserError(
            f"expert {expert} diverged in epoch {epoch}: the mean training loss is {loss:.4g}, and "
            f"loss or parameters are no longer finite; choose a smaller --lr (it is {lr:g})"
        )
