"""Training of a network on a small set of images by a protocol, and its test."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trajmatch import networks, ops
from trajmatch.data.dsa import DSA
from trajmatch.inference import check_answered, measured
from trajmatch.networks.flat import decayed
from trajmatch.protocol import Protocol
from trajmatch.random import derive_seed, generator
from trajmatch.reference import optimiser_step

_Batches = Iterator[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Outcome:
    """Results of the tests of one trained network.

    Attributes:
        accuracy: After the last round, in percent; that of a network that diverged is 0. For
            targets the mean squared error; that of a network that diverged is as of outputs 0.
        max_accuracy: The highest of all tests, chosen on the images that it is measured on; None
            where the protocol tests once, and for targets.
        diverged: True if parameters or running statistics were not finite after the last round.
    """

    accuracy: float
    max_accuracy: float | None
    diverged: bool


def train(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    protocol: Protocol,
    seed: int = 0,
    on_epoch: Callable[[], None] = lambda: None,
    on_test: Callable[[], None] | None = None,
    loss: str = "cross_entropy",
) -> nn.Module:
    """Train a model on a set of images from where it is.

    Args:
        model: Any module that :func:`trajmatch.ops.gradient` takes; it is changed, its buffers
            (running statistics of batch norm) with it, and left in training mode.
        images: As the network sees them. ``[n, C, H, W]``, float32.
        labels: Class indices ``[n]``, int64, or target logits ``[n, K]``, float32; for the mean
            squared error target outputs ``[n, D]``.
        protocol: How to train.
        seed: Seed of batch order, augmentation, and what the model draws from PyTorch's generators
            (dropout), which are left as they were.
        on_epoch: Called after every epoch, or after every step where the protocol counts steps.
        on_test: Called wherever the protocol tests, with the model as it is then.
        loss: ``"cross_entropy"`` or ``"mse"``.

    Returns:
        The model.

    Raises:
        ValueError: Images and labels are empty or differ in number.
    """
    check_answered("", images, labels)
    model.train()
    theta, trainable = networks.flat_parameters(model), networks.trainable(model)
    images, labels = images.to(theta.device), labels.to(theta.device)
    order, augmentation = generator(seed, "order"), generator(seed, "dsa")
    dsa, lr, momentum, buffer = DSA(protocol.dsa), protocol.lr, protocol.momentum, None
    means, rate, taken = theta.new_zeros(2, len(theta)), theta.new_tensor(lr), 0  # of Adam
    cuda = [theta.device] if theta.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), torch.no_grad():
        torch.manual_seed(derive_seed(seed, "network"))
        for index, batches in enumerate(_rounds(images, labels, protocol, order)):
            for batch_images, batch_labels in batches:
                shown = dsa(batch_images, augmentation)
                at = (model, theta, shown, batch_labels, loss)
                _, grad = ops.gradient(*at, update_buffers=True)
                grad = decayed(grad, theta, protocol.weight_decay, trainable)
                if protocol.optimiser == "sgd":
                    theta, buffer = ops.sgd_step(theta, grad, lr, buffer, momentum)
                else:
                    taken += 1
                    numbers = ops.Adam().numbers()
                    theta, means = optimiser_step(numbers, theta, grad, means, rate, taken)
            if index == protocol.drop_round:
                lr, momentum, buffer = lr * protocol.lr_drop, protocol.momentum_after, None
                rate *= protocol.lr_drop
            if on_test is not None and protocol.tests_after(index):
                networks.load_flat_parameters(model, theta)
                on_test()
                model.train()
            on_epoch()
    networks.load_flat_parameters(model, theta)
    return model


def train_fresh(
    images: Tensor,
    labels: Tensor,
    network_spec: dict[str, Any],
    protocol: Protocol,
    test_images: Tensor,
    test_labels: Tensor,
    seed: int = 0,
    device: str | torch.device = "cpu",
    on_epoch: Callable[[], None] = lambda: None,
) -> Outcome:
    """Train a fresh network on a set of images and test it on others.

    Args:
        images: As the network sees them (normalised). ``[n, C, H, W]``, float32.
        labels: Class indices ``[n]``, int64, or target logits ``[n, K]``, float32; with targets for
            the test, target outputs ``[n, D]``, which the network is trained to regress.
        network_spec: The network, as :func:`trajmatch.networks.build` takes it.
        protocol: How to train, and when to test.
        test_images: Normalised by the same statistics. ``[N, C, H, W]``, float32.
        test_labels: Class indices ``[N]``, int64, or target outputs ``[N, D]``, float32.
        seed: Seed of initialisation, batch order, augmentation and dropout.
        device: Where to train.
        on_epoch: Called after every round of the protocol.

    Returns:
        What the tests found.

    Raises:
        ValueError: Images, labels and network do not fit each other.
    """
    model = networks.build(network_spec)
    networks.initialise(model, generator(seed, "initialisation")).to(device)
    tests: list[float] = []
    regresses = test_labels.is_floating_point()

    def test() -> None:
        wrong = _diverged(model) and not regresses
        tests.append(0.0 if wrong else measured(model, test_images, test_labels))

    loss = "mse" if regresses else "cross_entropy"
    train(model, images, labels, protocol, seed, on_epoch, test, loss)
    max_accuracy = max(tests) if protocol.test_every and not regresses else None
    return Outcome(tests[-1], max_accuracy, _diverged(model))


def _diverged(model: nn.Module) -> bool:
    """True if a parameter or a running statistic is not finite."""
    state = itertools.chain(model.parameters(), model.buffers())
    return not all(bool(tensor.isfinite().all()) for tensor in state)


def _rounds(
    images: Tensor, labels: Tensor, protocol: Protocol, order: torch.Generator
) -> Iterator[_Batches]:
    """The batches of each round: an epoch of them, or one where the protocol counts steps."""
    epochs = (_batches(images, labels, protocol.batch_size, order) for _ in itertools.count())
    if protocol.steps is None:
        return itertools.islice(epochs, protocol.num_epochs)
    batches = itertools.chain.from_iterable(epochs)
    return (iter([batch]) for batch in itertools.islice(batches, protocol.steps))


def _batches(images: Tensor, labels: Tensor, size: int, order: torch.Generator) -> _Batches:
    """One epoch of shuffled batches, the last one perhaps smaller."""
    if len(images) <= size:  # one batch: its order does not matter
        yield images, labels
        return
    for batch in torch.split(torch.randperm(len(images), generator=order), size):
        batch = batch.to(images.device)
        yield images[batch], labels[batch]
