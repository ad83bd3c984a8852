"""Train a network on a small set of images by a protocol, and test the network."""

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
    """Test results of one trained network."""

    # Percent after the last round; 0 if the network diverged. For targets the mean squared error,
    # in which non-finite outputs count as 0.
    accuracy: float
    # Maximum over all tests, chosen on the test images; None for targets or a single test.
    max_accuracy: float | None
    diverged: bool  # a parameter or buffer is not finite after the last round


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
    """Train a model on a set of images from its current parameters, and return it.

    Args:
        model: Any module that :func:`trajmatch.ops.gradient` accepts. Parameters and buffers are
            changed in place; it is left in training mode.
        images: Network inputs (preprocessed). ``[n, C, H, W]``, float32.
        labels: Class indices ``[n]``, int64; target logits ``[n, K]``, float32; for ``"mse"``
            target outputs ``[n, D]``, float32.
        protocol: Hyper-parameters.
        seed: Seed of batch order, augmentation and dropout. PyTorch's generators are restored.
        on_epoch: Called after every round: an epoch, or a step if ``protocol.steps`` is set.
        on_test: Called at each test of the protocol, with the current parameters in the model.
        loss: ``"cross_entropy"`` or ``"mse"``.

    Raises:
        ValueError: Images and labels are empty or differ in number.
    """
    check_answered("", images, labels)
    model.train()
    # The loop updates the flat parameters theta [P]; the model gets them for tests and at the end.
    theta, trainable = networks.flat_parameters(model), networks.trainable(model)
    images, labels = images.to(theta.device), labels.to(theta.device)
    order, augmentation = generator(seed, "order"), generator(seed, "dsa")
    dsa, lr, momentum, buffer = DSA(protocol.dsa), protocol.lr, protocol.momentum, None
    means, rate, taken = theta.new_zeros(2, len(theta)), theta.new_tensor(lr), 0  # Adam only
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
            # Without a buffer, the momentum of SGD starts from zero. Adam keeps its means.
            if index == protocol.drop_round:
                lr, momentum, buffer = lr * protocol.lr_drop, protocol.momentum_after, None
                rate *= protocol.lr_drop
            if on_test is not None and protocol.tests_after(index):
                networks.load_flat_parameters(model, theta)
                on_test()
                model.train()  # on_test may have switched to evaluation mode
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
    """Train a new network on a set of images and test it on other images.

    ``images``, ``labels`` and ``on_epoch`` are as for :func:`train`. ``test_images`` have the same
    preprocessing. ``test_labels`` are class indices ``[N]``, int64, or targets ``[N, D]``, float32,
    for which the network is trained by regression. ``seed`` also determines the initialisation.
    Raises ValueError if images, labels and network do not fit each other.
    """
    model = networks.build(network_spec)
    networks.initialise(model, generator(seed, "initialisation")).to(device)
    tests: list[float] = []
    regresses = test_labels.is_floating_point()

    def test() -> None:
        # A diverged network has accuracy 0; in regression, infinite outputs count as 0.
        wrong = _diverged(model) and not regresses
        tests.append(0.0 if wrong else measured(model, test_images, test_labels))

    loss = "mse" if regresses else "cross_entropy"
    train(model, images, labels, protocol, seed, on_epoch, test, loss)
    max_accuracy = max(tests) if protocol.test_every and not regresses else None
    return Outcome(tests[-1], max_accuracy, _diverged(model))


def _diverged(model: nn.Module) -> bool:
    """Return True if a parameter or buffer is not finite."""
    state = itertools.chain(model.parameters(), model.buffers())
    return not all(bool(tensor.isfinite().all()) for tensor in state)


def _rounds(
    images: Tensor, labels: Tensor, protocol: Protocol, order: torch.Generator
) -> Iterator[_Batches]:
    """Return an iterator over rounds: an epoch's batches, or one batch if steps are counted."""
    epochs = (_batches(images, labels, protocol.batch_size, order) for _ in itertools.count())
    if protocol.steps is None:
        return itertools.islice(epochs, protocol.num_epochs)
    batches = itertools.chain.from_iterable(epochs)
    return (iter([batch]) for batch in itertools.islice(batches, protocol.steps))


def _batches(images: Tensor, labels: Tensor, size: int, order: torch.Generator) -> _Batches:
    """Yield one epoch of shuffled batches; the last batch may be smaller."""
    if len(images) <= size:  # the order within the only batch does not matter
        yield images, labels
        return
    for batch in torch.split(torch.randperm(len(images), generator=order), size):
        batch = batch.to(images.device)
        yield images[batch], labels[batch]
