"""The evaluation protocol of MTT: how a network is trained on a small set of images, and tested.

A fresh network, SGD with the learned step size, momentum 0.9 and weight decay 5e-4, DSA on, batches
of 256. The loop runs one epoch more than its number says, as MTT's (``evaluate_synset``) does;
after epoch index ``epochs // 2 + 1`` the step size drops to a tenth and the momentum starts anew.
The network is tested once, after the last epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trajmatch import networks, ops
from trajmatch.data.dsa import DSA
from trajmatch.evaluate.measure import accuracy
from trajmatch.random import generator

#: MTT's augmentation: all six groups.
MTT_DSA = "color_crop_cutout_flip_scale_rotate"


@dataclass(frozen=True)
class Protocol:
    """Hyper-parameters of one training; the defaults are MTT's.

    Attributes:
        lr: Step size; for a distilled set the learned one.
        dsa: Augmentation.
        epochs: Number that the schedule is made from; ``epochs + 1`` are run.
        batch_size: Images per step; a smaller set is one batch.
        momentum: Momentum of SGD.
        weight_decay: Added to the gradient, times the parameters.
        lr_drop: Factor of the step size's one drop.
    """

    lr: float
    dsa: str = MTT_DSA
    epochs: int = 1000
    batch_size: int = 256
    momentum: float = 0.9
    weight_decay: float = 5e-4
    lr_drop: float = 0.1

    @property
    def num_epochs(self) -> int:
        """Epochs that are run."""
        return self.epochs + 1

    @property
    def drop_epoch(self) -> int:
        """Index of the epoch after which the step size drops and the momentum starts anew."""
        return self.epochs // 2 + 1

    def describe(self) -> dict[str, Any]:
        """All that a reader of a score needs to train in the same way, as JSON can hold it."""
        return {
            "name": "mtt",
            **asdict(self),
            "num_epochs": self.num_epochs,
            "drop_epoch": self.drop_epoch,
            "tested": "once, after the last epoch",
        }


def train(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    protocol: Protocol,
    seed: int = 0,
    on_epoch: Callable[[], None] = lambda: None,
) -> nn.Module:
    """Trains a model on a set of images from where it is.

    Args:
        model: Any module that :func:`trajmatch.ops.gradient` takes, without buffers; it is changed.
        images: As the network sees them. ``[n, C, H, W]``, float32.
        labels: Class indices ``[n]``, int64, or target logits ``[n, K]``, float32.
        protocol: How to train.
        seed: Seed of batch order and augmentation.
        on_epoch: Called after every epoch.

    Returns:
        The model.

    Raises:
        ValueError: Images and labels are empty or differ in number.
        NotImplementedError: The model has buffers, e.g. the running statistics of batch norm.
    """
    if len(images) != len(labels) or len(images) == 0:
        raise ValueError(
            "expected as many labels as images, and at least one, but got "
            f"{len(images)} images and {len(labels)} labels"
        )
    names = [name for name, _ in model.named_buffers()]
    if names:
        raise NotImplementedError(
            f"expected a model without buffers, which would not be trained, but got {names[0]}; "
            "use instance, group or layer norm in place of batch norm"
        )
    theta = networks.flat_parameters(model)
    images, labels = images.to(theta.device), labels.to(theta.device)
    order, augmentation = generator(seed, "order"), generator(seed, "dsa")
    dsa, lr, buffer = DSA(protocol.dsa), protocol.lr, None
    with torch.no_grad():
        for epoch in range(protocol.num_epochs):
            for batch_images, batch_labels in _batches(images, labels, protocol.batch_size, order):
                _, grad = ops.gradient(model, theta, dsa(batch_images, augmentation), batch_labels)
                grad = torch.add(grad, theta, alpha=protocol.weight_decay)
                theta, buffer = ops.sgd_step(theta, grad, lr, buffer, protocol.momentum)
            if epoch == protocol.drop_epoch:
                lr, buffer = lr * protocol.lr_drop, None
            on_epoch()
    networks.load_flat_parameters(model, theta)
    return model


def train_and_test(
    images: Tensor,
    labels: Tensor,
    network_spec: dict[str, Any],
    lr: float,
    test_images: Tensor,
    test_labels: Tensor,
    seed: int = 0,
    epochs: int = 1000,
    batch_size: int = 256,
    dsa: str = MTT_DSA,
    device: str | torch.device = "cpu",
    on_epoch: Callable[[], None] = lambda: None,
) -> float:
    """Trains a fresh network on a set of images and tests it on others.

    Args:
        images: As the network sees them (normalised). ``[n, C, H, W]``, float32.
        labels: Class indices ``[n]``, int64, or target logits ``[n, K]``, float32.
        network_spec: The network, as :func:`trajmatch.networks.build` takes it.
        lr: Step size; for a distilled set the learned one.
        test_images: Normalised likewise. ``[N, C, H, W]``, float32.
        test_labels: Class indices ``[N]``, int64.
        seed: Seed of initialisation, batch order and augmentation.
        epochs: Number that the schedule is made from; one more is run.
        batch_size: Images per step.
        dsa: Augmentation to train with.
        device: Where to train.
        on_epoch: Called after every epoch.

    Returns:
        Test accuracy in percent. A network that diverged gets no image right.

    Raises:
        ValueError: Images, labels and network do not fit each other.
    """
    model = networks.build(network_spec)
    networks.initialise(model, generator(seed, "initialisation")).to(device)
    protocol = Protocol(lr=lr, dsa=dsa, epochs=epochs, batch_size=batch_size)
    train(model, images, labels, protocol, seed, on_epoch)
    return accuracy(model, test_images, test_labels)


def _batches(
    images: Tensor, labels: Tensor, size: int, order: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of shuffled batches, the last one perhaps smaller."""
    if len(images) <= size:  # one batch: its order does not matter
        yield images, labels
        return
    for batch in torch.split(torch.randperm(len(images), generator=order), size):
        batch = batch.to(images.device)
        yield images[batch], labels[batch]
