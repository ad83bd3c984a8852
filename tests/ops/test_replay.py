"""The backward pass of an unrolled loop repeats the steps of the forward pass, or raises."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trajmatch import networks, ops, reference
from trajmatch.networks import ConvNet
from trajmatch.ops.replay import Fingerprints

Check = Callable[..., None]
Between = Callable[[nn.Module, Tensor], object]
EXACT = 1e-9


class Normed(nn.Module):
    """A small network with batch norm, whose output ``draw`` scales."""

    def __init__(self, draw: Callable[[], float] = lambda: 1.0) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(3 * 8 * 8, 4)
        self.draw = draw

    def forward(self, images: Tensor) -> Tensor:
        return self.draw() * self.head(torch.tanh(self.norm(images)).flatten(1))


def leaves_of(model: nn.Module, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    theta = networks.flat_parameters(model)
    return {
        "theta0": (theta + 0.1 * torch.randn(theta.shape, generator=draw)).to(dtype),
        "images": torch.randn(6, 3, 8, 8, generator=draw).to(dtype).requires_grad_(),
        "labels": torch.arange(6) % 4,
        "lr": torch.tensor(0.05, dtype=dtype, requires_grad=True),
    }


def gradients(
    unroll: Callable[..., Tensor],
    model: nn.Module,
    between: Between = lambda model, batches: None,
    **choices: Any,
) -> list[Tensor]:
    """Gradients of a function of the end, with ``between`` called before the backward pass."""
    seed()
    leaves = leaves_of(model)
    batches = torch.tensor([[0, 1, 2], [3, 4, 5], [0, 3, 1], [5, 2, 2]])
    end = unroll(model, **leaves, batches=batches, momentum=0.5, **choices)
    between(model, batches)
    loss = (end * torch.linspace(-1, 1, len(end), dtype=end.dtype)).sum()
    return list(torch.autograd.grad(loss, (leaves["images"], leaves["lr"])))


def seed() -> None:
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)


def another_batch(model: nn.Module, batches: Tensor) -> None:
    model.train()
    model(torch.randn(8, 3, 8, 8) + 3)
    model.eval()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "between",
    [
        lambda model, batches: model.train(not model.training),
        another_batch,
        lambda model, batches: batches.zero_(),
        lambda model, batches: (torch.rand(7), random.random(), np.random.rand()),
    ],
    ids=["mode", "buffers", "batches", "generators"],
)
def test_a_change_before_the_backward_pass_changes_no_gradient(
    assert_close_as_vectors: Check, training: bool, between: Between
) -> None:
    model = Normed().train(training)
    wanted = gradients(reference.unroll, model)
    assert_close_as_vectors(gradients(ops.unroll, model, between), wanted, EXACT)


@pytest.mark.parametrize(
    "generator", [random.random, np.random.rand, lambda: float(torch.rand(()))]
)
def test_random_numbers_of_a_network_are_replayed(
    assert_close_as_vectors: Check, generator: Callable[[], float]
) -> None:
    model = Normed(lambda: 0.5 + generator())
    wanted = gradients(reference.unroll, model)
    assert_close_as_vectors(gradients(ops.unroll, model), wanted, EXACT)
    assert not torch.equal(wanted[0], gradients(reference.unroll, Normed())[0])


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_dropout_is_differentiated_with_its_masks(
    assert_close_as_vectors: Check, micro_batch: int | None
) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, 4))
    if micro_batch is None:
        wanted = gradients(reference.unroll, model)
        assert_close_as_vectors(gradients(ops.unroll, model), wanted, EXACT)
    else:
        with pytest.raises(ValueError, match="expected micro_batch to be None"):
            gradients(ops.unroll, model, micro_batch=micro_batch)


def random_flip(images: Tensor, step: int) -> Tensor:
    draws = (torch.rand(()), random.random(), np.random.rand())
    return images * sum(float(each) for each in draws) if step else images.flip(-1)


@pytest.mark.parametrize("model", [Normed(), ConvNet(3, 4, 8, 4, 2)], ids=["autograd", "engine"])
def test_random_numbers_of_an_augmentation_are_replayed(
    assert_close_as_vectors: Check, model: nn.Module
) -> None:
    wanted = gradients(reference.unroll, model, augment=random_flip)
    assert_close_as_vectors(gradients(ops.unroll, model, augment=random_flip), wanted, EXACT)


@pytest.mark.parametrize("inside", [True, False], ids=["forward", "backward"])
def test_autocast_is_that_of_the_forward_pass(inside: bool) -> None:
    model = Normed()
    results = []
    for unroll in (ops.unroll, reference.unroll):
        leaves = leaves_of(model, torch.float32)
        batches = torch.tensor([[0, 1, 2], [3, 4, 5]])
        with torch.autocast("cpu", enabled=inside):
            end = unroll(model, **leaves, batches=batches)
        with torch.autocast("cpu", enabled=not inside and unroll is ops.unroll):
            results.append(torch.autograd.grad(end.square().sum(), leaves["images"])[0])
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-8)


def test_the_backward_pass_leaves_everything_as_it_was() -> None:
    model = Normed(random.random)
    leaves = leaves_of(model)
    end = ops.unroll(model, **leaves, batches=[[0, 1], [2, 3]], augment=random_flip)
    model.eval()
    model.norm.running_mean.fill_(2.0)
    mean = model.norm.running_mean
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
    end.sum().backward()
    after = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
    assert not model.training and not model.norm.training
    assert model.norm.running_mean is mean and mean.eq(2.0).all()


def test_a_second_backward_pass_gives_the_same() -> None:
    leaves = leaves_of(Normed())
    model = Normed(random.random)
    end = ops.unroll(model, **leaves, batches=[[0, 1], [2, 3]], augment=random_flip).sum()
    first, second = (
        torch.autograd.grad(end, leaves["images"], retain_graph=True)[0] for _ in range(2)
    )
    assert torch.equal(first, second)


def own_generator() -> Callable[[Tensor, int], Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda images, step: images + 0.1 * torch.randn(images.shape, generator=generator)


@pytest.mark.parametrize("model", [Normed(), ConvNet(3, 4, 8, 4, 2)], ids=["autograd", "engine"])
def test_an_augmentation_that_cannot_be_repeated_is_an_error(model: nn.Module) -> None:
    with pytest.raises(RuntimeError, match="expected step 0 of the backward pass to repeat"):
        gradients(ops.unroll, model, augment=own_generator())


def test_a_network_that_cannot_be_repeated_is_an_error() -> None:
    model = Normed()
    with pytest.raises(RuntimeError, match="or they use a private random generator"):
        gradients(ops.unroll, model, lambda model, batches: setattr(model, "draw", lambda: 1.05))


@pytest.mark.parametrize("name", ["images", "theta0", "lr", "labels"])
@pytest.mark.parametrize("model", [Normed(), ConvNet(3, 4, 8, 4, 2)], ids=["autograd", "engine"])
def test_inputs_that_change_in_place_change_no_gradient_silently(
    model: nn.Module, name: str
) -> None:
    def image_gradient(change: bool) -> Tensor:
        leaves = leaves_of(model)
        end = ops.unroll(model, **leaves, batches=[[0, 1, 2], [3, 4, 5]])
        if change:
            with torch.no_grad():
                leaves[name].mul_(0)
        return torch.autograd.grad(end.square().sum(), leaves["images"])[0]

    wanted = image_gradient(False)
    try:
        found = image_gradient(True)
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)
    else:
        assert torch.equal(found, wanted)


def test_a_student_that_diverges_is_no_error() -> None:
    model = Normed()
    leaves = leaves_of(model) | {"lr": torch.tensor(torch.nan, dtype=torch.float64)}
    end = ops.unroll(model, **leaves, batches=[[0, 1], [2, 3], [4, 5]])
    (grad,) = torch.autograd.grad(end.sum(), leaves["images"])
    assert not grad.isfinite().all()


def test_without_a_backward_pass_nothing_is_checked() -> None:
    leaves = leaves_of(Normed())
    with torch.no_grad():
        end = ops.unroll(Normed(), **leaves, batches=[[0, 1]], augment=own_generator())
    assert end.isfinite().all()


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda x: x.clone(), False),
        (lambda x: x * (1 + 1e-6), False),
        (lambda x: x.flip(-1), True),
        (lambda x: x.roll(1, 0), True),
        (lambda x: -x, True),
        (lambda x: x + 0.1 * torch.randn_like(x), True),
        (lambda x: torch.zeros_like(x), True),
    ],
)
def test_fingerprints_tell_changes_from_rounding(
    change: Callable[[Tensor], Tensor], found: bool
) -> None:
    values, fingerprints = torch.randn(4, 3, 8, 8), Fingerprints()
    fingerprints.record(3, values)
    fingerprints.record(3, change(values), again=True)
    if found:
        with pytest.raises(RuntimeError, match="expected step 3"):
            fingerprints.check(torch.finfo(torch.float32).eps)
    else:
        fingerprints.check(torch.finfo(torch.float32).eps)
