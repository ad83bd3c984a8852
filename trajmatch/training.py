"""Train a network on a small set of images by a protocol, and test the network."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trajmatch import networks, ops
from trajmatch.data.dsa import DSA
from trajmatch.inference import check_answered, measured
from trajmatch.networks.flat import decayed
from trajmatch.out_of_memory import in_groups
from trajmatch.protocol import Protocol
from trajmatch.random import derive_seed, generator
from trajmatch.reference import optimiser_step

_Batches = Iterator[tuple[Tensor, Tensor]]

#: Limit on the pixels of the training sets of all networks that train side by side: 512 images of
#: 32 x 32. Their steps take about twice the memory of one network's step with the usual 256 images.
_PIXELS = 2**19


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

    def test(theta: Tensor) -> None:
        networks.load_flat_parameters(model, theta)
        if on_test is not None:
            on_test()
            model.train()  # on_test may have switched to evaluation mode

    theta = networks.flat_parameters(model)
    _take(model, [_steps(model, theta, images, labels, protocol, seed, on_epoch, test)], seed, loss)
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
    sets, tests = [(images, labels, seed)], (test_images, test_labels)
    (outcome,) = train_networks(sets, network_spec, protocol, tests, device, on_epoch)
    return outcome


def train_networks(
    sets: Iterable[tuple[Tensor, Tensor, int]],
    network_spec: dict[str, Any],
    protocol: Protocol,
    tests: tuple[Tensor, Tensor],
    device: str | torch.device = "cpu",
    on_epoch: Callable[[], None] = lambda: None,
) -> Iterator[Outcome]:
    """Yield the outcomes of new networks, trained on sets with the same number of images.

    A set has images, labels and the seed of its network; ``tests`` are test images and labels. All
    are as for :func:`train_fresh`. On a GPU, networks on small sets are trained side by side, so
    that they share launches, or fewer of them if memory runs out. Sets are taken from the iterable
    when their training begins.
    """
    sets, device = iter(sets), torch.device(device)
    for first in sets:
        model, at_once = networks.build(network_spec), 1
        # A module holds the running statistics of one network only, so networks with such buffers
        # train one at a time.
        if (
            device.type == "cuda"
            and ops.engine_for(model) == "engine"
            and networks.num_buffers(model) == 0
        ):
            at_once = _PIXELS // max(1, first[0][:, 0].numel())
        group = [first, *itertools.islice(sets, max(0, at_once - 1))]
        train = partial(_side_by_side, model.to(device), protocol, tests, on_epoch)
        for _, outcomes in in_groups(train, group, len(group), device, "networks"):
            yield from outcomes


def _side_by_side(
    model: nn.Module,
    protocol: Protocol,
    tests: tuple[Tensor, Tensor],
    on_epoch: Callable[[], None],
    sets: Sequence[tuple[Tensor, Tensor, int]],
) -> list[Outcome]:
    """Train a network on each set, all at the same time, and return their outcomes."""
    test_images, test_labels = tests
    regresses = test_labels.is_floating_point()
    found: list[list[float]] = [[] for _ in sets]
    diverged = [False for _ in sets]

    def test(number: int, theta: Tensor) -> None:
        networks.load_flat_parameters(model, theta)
        # A diverged network has accuracy 0; in regression, infinite outputs count as 0.
        diverged[number] = _diverged(model)
        wrong = diverged[number] and not regresses
        found[number].append(0.0 if wrong else measured(model, test_images, test_labels))
        model.train()

    courses = []
    for number, (images, labels, seed) in enumerate(sets):
        check_answered("", images, labels)
        networks.initialise(model, generator(seed, "initialisation"))
        theta, tested = networks.flat_parameters(model), partial(test, number)
        courses.append(_steps(model, theta, images, labels, protocol, seed, on_epoch, tested))
    _take(model, courses, sets[0][2], "mse" if regresses else "cross_entropy")
    often = protocol.test_every and not regresses
    pairs = zip(found, diverged, strict=True)
    return [Outcome(each[-1], max(each) if often else None, lost) for each, lost in pairs]


@dataclass
class _Step:
    """Step of a network: parameters ``[P]``, images and labels, and the gradient it waits for."""

    inputs: tuple[Tensor, Tensor, Tensor]
    grad: Tensor = field(init=False)


def _take(model: nn.Module, courses: Sequence[Iterator[_Step]], seed: int, loss: str) -> None:
    """Take the steps of several networks at the same time, with one gradient call for all.

    ``seed`` seeds the random choices inside a network, such as dropout.
    """
    model.train()
    cuda = {each.device for each in model.parameters() if each.is_cuda}
    with torch.random.fork_rng(devices=cuda), torch.no_grad():
        torch.manual_seed(derive_seed(seed, "network"))
        for steps in zip(*courses, strict=True):
            if len(steps) == 1:
                theta, images, labels = steps[0].inputs
                at = (model, theta, images, labels, loss)
                _, steps[0].grad = ops.gradient(*at, update_buffers=True)
                continue
            theta, images, labels = map(torch.stack, zip(*(s.inputs for s in steps), strict=True))
            _, grads = ops.gradient(model, theta, images, labels, loss)
            for step, grad in zip(steps, grads, strict=True):
                step.grad = grad


def _steps(
    model: nn.Module,
    theta: Tensor,
    images: Tensor,
    labels: Tensor,
    protocol: Protocol,
    seed: int,
    on_epoch: Callable[[], None],
    test: Callable[[Tensor], None],
) -> Iterator[_Step]:
    """Train from ``theta [P]``: yield each step, and continue after the caller set its ``grad``."""
    trainable = networks.trainable(model)
    images, labels = images.to(theta.device), labels.to(theta.device)
    order, augmentation = generator(seed, "order"), generator(seed, "dsa")
    dsa, lr, momentum, buffer = DSA(protocol.dsa), protocol.lr, protocol.momentum, None
    means, rate, taken = theta.new_zeros(2, len(theta)), theta.new_tensor(lr), 0  # Adam only
    for index, batches in enumerate(_rounds(images, labels, protocol, order)):
        for batch_images, batch_labels in batches:
            yield (step := _Step((theta, dsa(batch_images, augmentation), batch_labels)))
            grad = decayed(step.grad, theta, protocol.weight_decay, trainable)
            if protocol.optimiser == "sgd":
                theta, buffer = ops.sgd_step(theta, grad, lr, buffer, momentum)
            else:
                taken += 1
                numbers = ops.Adam().numbers()
                theta, means = optimiser_step(numbers, theta, grad, means, rate, taken)
        # SGD restarts from zero momentum (no buffer). Adam keeps its means.
        if index == protocol.drop_round:
            lr, momentum, buffer = lr * protocol.lr_drop, protocol.momentum_after, None
            rate *= protocol.lr_drop
        if protocol.tests_after(index):
            test(theta)
        on_epoch()


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
