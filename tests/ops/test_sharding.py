"""Batches that several processes share; here each is a thread, and sums are exchanged in memory."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trajmatch import networks, ops
from trajmatch.data import DSA
from trajmatch.networks.differentiable import treats_images_alone
from trajmatch.ops.loop import Steps
from trajmatch.ops.parts import ShardedLoop
from trajmatch.ops.student import EngineStudent

IMAGES, CLASSES, SIZE = 7, 3, 8


class Threads:
    """Threads that stand for processes; ``sum_`` adds in the order of the ranks."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size)
        self.parts: list[Tensor] = [torch.empty(0)] * size

    def run(self, function: Callable[[Any], Any]) -> list[Any]:
        """What a function gives for each of them, called in all at the same time."""

        def of_rank(rank: int) -> Any:
            try:
                return function(Member(self, rank))
            except Exception:
                self.barrier.abort()  # nobody waits for it
                raise

        with ThreadPoolExecutor(self.size) as pool:
            return [each.result() for each in [pool.submit(of_rank, r) for r in range(self.size)]]


class Member:
    def __init__(self, threads: Threads, rank: int) -> None:
        self.rank, self.size, self._threads = rank, threads.size, threads

    def sum_(self, tensor: Tensor) -> None:
        self._threads.parts[self.rank] = tensor.clone()
        self._threads.barrier.wait()
        tensor.copy_(torch.stack(self._threads.parts).sum(0))
        self._threads.barrier.wait()


def convnet() -> nn.Module:
    return networks.ConvNet(1, CLASSES, SIZE, 4, 2)


def perceptron() -> nn.Module:
    """A network that runs on autograd."""
    return nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE, 5), nn.Tanh(), nn.Linear(5, CLASSES))


def derivatives(model: nn.Module, soft: bool, **choices: Any) -> list[Tensor]:
    """Parameters after two counts of steps, and gradients in all that they depend on."""
    # A call with other parameters changes a module while it lasts: each thread needs its own.
    model = copy.deepcopy(model)
    draw = torch.Generator().manual_seed(0)
    theta = networks.flat_parameters(model).double().requires_grad_()
    images = torch.randn(IMAGES, 1, SIZE, SIZE, generator=draw, dtype=torch.float64)
    labels = torch.arange(IMAGES) % CLASSES
    if soft:
        labels = torch.randn(IMAGES, CLASSES, generator=draw, dtype=torch.float64)
    leaves = [theta, images.requires_grad_(), torch.tensor(0.1, dtype=torch.float64)]
    leaves[2].requires_grad_()
    if soft:
        leaves.append(labels.requires_grad_())
    order = torch.randperm(IMAGES, generator=draw)
    batches = [order[:5], order[5:], order[2:], order[:1]]  # one is smaller than the processes
    thetas = ops.unroll(
        model,
        theta,
        images,
        labels,
        leaves[2],
        batches,
        steps=[2, 4],
        loss_scale=0.7,
        **{"optimiser": ops.SGD(0.9), **choices},
    )
    weights = torch.randn(thetas.shape, generator=draw, dtype=torch.float64)
    return [thetas.detach(), *torch.autograd.grad((weights * thetas.square()).sum(), leaves)]


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("make", [convnet, perceptron])
@pytest.mark.parametrize(
    ("soft", "choices"),
    [
        (False, {}),
        (True, {}),
        (True, {"exact": False}),
        (True, {"loss": "mse"}),
        (True, {"optimiser": ops.Adam(eps=1e-4, weight_decay=0.1)}),
        (False, {"optimiser": ops.SGD(0.9, nesterov=True)}),
    ],
)
def test_is_one_process_up_to_the_order_of_sums(size, make, soft, choices) -> None:
    model = make().double()
    choices = {"augment": DSA().replay(seed=3), **choices}
    wanted = derivatives(model, soft, **choices)
    for got in Threads(size).run(
        lambda shards: derivatives(copy.deepcopy(model), soft, shards=shards, **choices)
    ):
        for one, other in zip(got, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)


def test_every_process_has_the_same_bits() -> None:
    model = convnet()
    first, *others = Threads(3).run(
        lambda shards: derivatives(copy.deepcopy(model), True, shards=shards)
    )
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_every_image_is_of_one_process() -> None:
    """Each works on its part alone: the parts are the batch, in its order."""
    seen: dict[int, Tensor] = {}
    batch = torch.tensor([4, 0, 6, 2, 5])

    def part(shards: Member) -> None:
        student = EngineStudent(networks.engine_description(convnet()), 1.0, 0)
        loop = ShardedLoop(shards, student, Steps([batch], [1], ops.SGD(), None, True))
        (seen[shards.rank],) = loop.steps.batches

    Threads(3).run(part)
    assert [len(seen[rank]) for rank in range(3)] == [1, 2, 2]
    assert torch.equal(torch.cat([seen[rank] for rank in range(3)]), batch)


def test_one_process_shares_nothing() -> None:
    model = convnet()
    alone = Member(Threads(1), 0)
    alone.sum_ = lambda tensor: pytest.fail("there is nobody to exchange with")  # type: ignore
    wanted = derivatives(model, False)
    for one, other in zip(derivatives(model, False, shards=alone), wanted, strict=True):
        assert torch.equal(one, other)


def test_a_function_that_is_not_dsa_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="expected augment to be None or a DsaReplay"):
        Threads(2).run(
            lambda shards: derivatives(
                convnet(), False, shards=shards, augment=lambda images, step: images
            )
        )


def test_batch_norm_is_refused() -> None:
    model = networks.ConvNet(1, CLASSES, SIZE, 4, 2, norm="batch").double()
    with pytest.raises(ValueError, match=r"shards to be None .* as batch norm does"):
        Threads(2).run(lambda shards: derivatives(copy.deepcopy(model), False, shards=shards))


@pytest.mark.parametrize("name", ["batch", "ghost", "eval", "layer"])
def test_images_that_depend_on_each_other_are_found(name) -> None:
    class Ghost(nn.Module):
        """A norm of one's own, which no list of classes has."""

        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(0)

    norm = {"batch": nn.BatchNorm2d(2), "ghost": Ghost(), "eval": nn.BatchNorm2d(2).eval()}.get(
        name, nn.LayerNorm([2, 6, 6])
    )
    model = nn.Sequential(nn.Conv2d(1, 2, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(72, CLASSES))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    theta = networks.flat_parameters(model)
    images = torch.randn(5, 1, SIZE, SIZE)
    assert treats_images_alone(model, theta, images) == (name not in ("batch", "ghost"))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
