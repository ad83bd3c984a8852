"""The training of one expert: plain SGD on the real images, with a snapshot after every epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from trajmatch import networks, ops
from trajmatch.data import Dataset, normaliser
from trajmatch.data.dsa import DSA
from trajmatch.errors import UserError
from trajmatch.evaluate.measure import accuracy
from trajmatch.random import generator


def train_expert(
    manifest: dict[str, Any],
    training: Dataset,
    expert: int,
    device: str | torch.device = "cpu",
    on_epoch: Callable[[float], None] = lambda loss: None,
) -> tuple[Tensor, dict[str, Any]]:
    """Trains one expert (MTT, ``buffer.py``): every epoch visits each image once, augmented by DSA.

    The result is a function of the manifest, the images and the expert's number alone.
    Initialisation, batch order and augmentation draw from generators of the expert's own. On a CPU
    the sums inside a convolution depend on the number of threads in the last bits, so callers that
    promise equal bytes train every expert on the same number
    (:func:`trajmatch.experts.train_experts`: one).

    Args:
        manifest: Manifest of the store; its ``network``, ``recipe`` and ``seed`` are used.
        training: What the expert sees. Images stay uint8 until they are in a batch.
        expert: Its number.
        device: Where to train.
        on_epoch: Called with the mean training loss after every epoch.

    Returns:
        Snapshots ``[epochs + 1, P]``, float32, on the CPU, row 0 the initialisation; and the
        metrics that :meth:`trajmatch.experts.Store.metrics` lists.

    Raises:
        UserError: The loss or a parameter is no longer finite.
    """
    recipe, seed = manifest["recipe"], manifest["seed"]
    model = networks.build(manifest["network"])
    networks.initialise(model, generator(seed, "expert", expert, "initialisation"))
    model.to(device)
    order = generator(seed, "expert", expert, "order")
    augmentation = generator(seed, "expert", expert, "dsa")
    dsa = DSA(recipe["dsa"])
    # On a GPU the images lie there as uint8, and are normalised and augmented there, by the batch.
    images, labels = training.train_images.to(device), training.train_labels.to(device)
    normalise = normaliser(training.mean, training.std, device)

    theta = networks.flat_parameters(model)
    buffer = None
    snapshots = torch.empty(recipe["epochs"] + 1, len(theta))
    snapshots[0] = theta
    losses = []
    with torch.no_grad():
        for epoch in range(1, recipe["epochs"] + 1):
            total = torch.zeros((), dtype=torch.float64, device=device)
            shuffled = torch.randperm(len(labels), generator=order).to(device)
            for batch in torch.split(shuffled, recipe["batch_size"]):
                augmented = dsa(normalise(images[batch]), augmentation)
                loss, grad = ops.gradient(model, theta, augmented, labels[batch])
                if recipe["weight_decay"]:
                    grad = grad.add(theta, alpha=recipe["weight_decay"])
                theta, buffer = ops.sgd_step(theta, grad, recipe["lr"], buffer, recipe["momentum"])
                total += loss * len(batch)
            losses.append(total.item() / len(labels))
            _check_finite(expert, epoch, losses[-1], theta, recipe["lr"])
            snapshots[epoch] = theta
            on_epoch(losses[-1])

    networks.load_flat_parameters(model, theta)
    return snapshots, {
        "train_loss": losses,
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
