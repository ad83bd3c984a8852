"""Mean and deviation of the test accuracy over several networks."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trajmatch.evaluate.protocol import MTT_DSA, Protocol, train_and_test
from trajmatch.random import derive_seed


@dataclass(frozen=True)
class Score:
    """Test accuracy of networks that were trained on a set, in percent.

    Attributes:
        mean: Mean over the networks.
        std: Standard deviation over the networks, of the population (divided by their number, as
            the papers' code does).
        accuracies: One for each network.
        protocol: How they were trained; see :meth:`trajmatch.evaluate.Protocol.describe`.
        seeds: Number of networks.
    """

    mean: float
    std: float
    accuracies: tuple[float, ...]
    protocol: dict[str, Any]
    seeds: int

    @classmethod
    def of(cls, accuracies: Sequence[float], protocol: dict[str, Any]) -> Score:
        """The score of networks with these accuracies."""
        return cls(
            mean=statistics.fmean(accuracies),
            std=statistics.pstdev(accuracies),
            accuracies=tuple(accuracies),
            protocol=protocol,
            seeds=len(accuracies),
        )

    def as_dict(self) -> dict[str, Any]:
        """``mean``, ``std``, ``accuracies`` and ``seeds``, as JSON can hold them."""
        return {
            "mean": self.mean,
            "std": self.std,
            "accuracies": list(self.accuracies),
            "seeds": self.seeds,
        }


def evaluate_each(
    training_set: Callable[[int], tuple[Tensor, Tensor]],
    network_spec: dict[str, Any],
    protocol: Protocol,
    test_images: Tensor,
    test_labels: Tensor,
    seeds: int = 5,
    seed: int = 0,
    device: str | torch.device = "cpu",
    on_epoch: Callable[[], None] = lambda: None,
) -> Score:
    """Trains several fresh networks, each on a set of its own, and tests them.

    Args:
        training_set: Images ``[n, C, H, W]``, float32, normalised, and labels ``[n]`` or ``[n, K]``
            for network 0, 1, ...
        network_spec: The network, as :func:`trajmatch.networks.build` takes it.
        protocol: How to train.
        test_images: Normalised likewise. ``[N, C, H, W]``, float32.
        test_labels: Class indices ``[N]``, int64.
        seeds: Number of networks.
        seed: Seed of the evaluation; network ``k`` depends on it and on ``k`` only.
        device: Where to train.
        on_epoch: Called after every epoch of every network.

    Returns:
        The score.

    Raises:
        ValueError: Images, labels and network do not fit each other.
    """
    accuracies = [
        train_and_test(
            *training_set(network),
            network_spec,
            protocol.lr,
            test_images,
            test_labels,
            seed=derive_seed(seed, "evaluate", network),
            epochs=protocol.epochs,
            batch_size=protocol.batch_size,
            dsa=protocol.dsa,
            device=device,
            on_epoch=on_epoch,
        )
        for network in range(seeds)
    ]
    return Score.of(accuracies, {**protocol.describe(), "network": network_spec})


def evaluate_set(
    images: Tensor,
    labels: Tensor,
    network_spec: dict[str, Any],
    lr: float,
    test_images: Tensor,
    test_labels: Tensor,
    seeds: int = 5,
    seed: int = 0,
    epochs: int = 1000,
    batch_size: int = 256,
    dsa: str = MTT_DSA,
    device: str | torch.device = "cpu",
    on_epoch: Callable[[], None] = lambda: None,
) -> Score:
    """Trains several fresh networks on one set of images and tests each.

    Args:
        images: As the networks see them (normalised). ``[n, C, H, W]``, float32.
        labels: Class indices ``[n]``, int64, or target logits ``[n, K]``, float32.
        network_spec: The network, as :func:`trajmatch.networks.build` takes it.
        lr: Step size; for a distilled set the learned one.
        test_images: Normalised likewise. ``[N, C, H, W]``, float32.
        test_labels: Class indices ``[N]``, int64.
        seeds: Number of networks.
        seed: Seed of the evaluation; network ``k`` depends on it and on ``k`` only.
        epochs: Number that the schedule is made from; one more is run.
        batch_size: Images per step.
        dsa: Augmentation to train with.
        device: Where to train.
        on_epoch: Called after every epoch of every network.

    Returns:
        The score.

    Raises:
        ValueError: Images, labels and network do not fit each other.
    """
    return evaluate_each(
        lambda network: (images, labels),
        network_spec,
        Protocol(lr=lr, dsa=dsa, epochs=epochs, batch_size=batch_size),
        test_images,
        test_labels,
        seeds,
        seed,
        device,
        on_epoch,
    )


def random_subset(labels: Tensor, images_per_class: int, draw: torch.Generator) -> Tensor:
    """Draws the same number of images from every class, without repetition.

    Args:
        labels: Class indices ``[N]``, int64.
        images_per_class: How many of each; all of a class that has fewer.
        draw: Where the choice is drawn from.

    Returns:
        Indices into ``labels``, class by class. At most ``[K * images_per_class]``, int64.
    """
    shuffled = torch.randperm(len(labels), generator=draw)
    classes = torch.unique(labels).tolist()
    return torch.cat([shuffled[labels[shuffled] == k][:images_per_class] for k in classes])
