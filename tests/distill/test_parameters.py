"""Outer parameters and their optimisers."""

import math

import pytest
import torch
from torch import Tensor

from trajmatch.distill.iteration import outer_iteration
from trajmatch.distill.parameters import SGD, Adam, OuterParameter, leaves
from trajmatch.distill.problem import prepare
from trajmatch.random import generator


def eta(value: float, **rule: object) -> OuterParameter:
    """The step size, as a run has it."""
    return OuterParameter.new(
        torch.tensor(value, dtype=torch.float64),
        SGD(**{"lr": 1e-3, "momentum": 0.5, "flag": "--lr-lr", "positive": True, **rule}),
    )


def of(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def test_it_is_the_sgd_of_pytorch() -> None:
    value = torch.randn(3, 1, 4, 4, generator=generator(0))
    ours = OuterParameter.new(value, SGD(lr=7.0, momentum=0.5, flag="--lr-img"))
    theirs = torch.nn.Parameter(value.clone())
    optimiser = torch.optim.SGD([theirs], lr=7.0, momentum=0.5)
    for number in range(3):
        theirs.grad = torch.randn(value.shape, generator=generator(1, number))
        optimiser.step()
        ours = ours.updated(theirs.grad)
        torch.testing.assert_close(ours.value, theirs.detach())


def test_it_is_the_adam_of_pytorch() -> None:
    value = torch.randn(3, 1, 4, 4, generator=generator(0), dtype=torch.float64)
    ours = OuterParameter.new(value, Adam(lr=0.02, flag="--lr-img"))
    theirs = torch.nn.Parameter(value.clone())
    optimiser = torch.optim.Adam([theirs], lr=0.02)
    for number in range(30):
        theirs.grad = torch.randn(value.shape, generator=generator(1, number), dtype=torch.float64)
        optimiser.step()
        ours = ours.updated(theirs.grad)
        torch.testing.assert_close(ours.value, theirs.detach(), rtol=1e-12, atol=1e-14)


def test_gradients_are_clipped_to_a_multiple_of_their_running_norm() -> None:
    """Written out in numbers: the first is not clipped, and what is kept makes the average."""
    rule = SGD(lr=1.0, momentum=0.0, flag="--lr-img", clip=2.0)
    ours, place, usual = OuterParameter.new(of(0.0).expand(4), rule), 0.0, None
    for norm in (4.0, 2.0, 100.0, 5.0, 0.0):
        kept = norm if usual is None else min(norm, 2.0 * usual)
        usual = kept if usual is None else 0.9 * usual + 0.1 * kept
        place -= kept / 2  # in each of four numbers
        ours = ours.updated(of(norm / 2).expand(4))
        torch.testing.assert_close(ours.value, of(place).expand(4))
        assert ours.moments["norm"].item() == pytest.approx(usual)


def test_a_constant_stays() -> None:
    labels = OuterParameter.new(torch.arange(3))
    assert labels.updated(None) is labels
    assert not leaves({"labels": labels, "eta": eta(0.1)}, "cpu")["labels"].requires_grad
    assert leaves({"eta": eta(0.1)}, "cpu")["eta"].requires_grad


def test_multiplicative_steps() -> None:
    one = eta(0.01, multiplicative=True).updated(of(2.0))
    assert one.value.item() == 0.01 * math.exp(-1e-3 * 2.0 / 0.01)
    two = one.updated(of(-4.0))
    assert two.moments["velocity"].item() == -3.0
    assert two.value.item() == one.value.item() * math.exp(3e-3 / one.value.item())


@pytest.mark.parametrize("lr", [1e-6, 1e-7])
def test_multiplicative_steps_are_the_plain_ones_to_first_order(lr: float) -> None:
    plain, multiplicative = (
        eta(0.02, lr=lr, multiplicative=which).updated(of(3.5)).value.item()
        for which in (False, True)
    )
    change = 3.5 * lr
    assert plain == pytest.approx(0.02 - change, rel=1e-15)
    assert multiplicative - plain == pytest.approx(change**2 / (2 * 0.02), rel=1e-3)


def test_a_multiplicative_step_stays_positive_where_a_plain_one_does_not() -> None:
    assert eta(0.01).updated(of(100.0)).value < 0
    assert eta(0.01, multiplicative=True).updated(of(100.0)).value > 0


def test_a_step_that_no_exponential_holds_is_too_large_for_float32() -> None:
    assert (
        eta(1e-3, lr=1.0, multiplicative=True).updated(of(-1e9)).value
        > torch.finfo(torch.float32).max
    )


def test_an_update_smaller_than_single_precision_is_kept() -> None:
    step = eta(0.01, lr=1e-12, momentum=0.0, multiplicative=True)
    for _ in range(10):
        step = step.updated(torch.tensor(1.0))  # float32, as gradients come
    assert step.value.item() == pytest.approx(0.01 - 1e-11, rel=1e-13)


@pytest.mark.parametrize("beta", [0.9, 0.5])
def test_the_first_images_keep_the_weight_beta_to_the_k_in_the_average(configure, beta) -> None:
    problem = prepare(configure(ema=beta, iterations=5, lr_img=10.0))
    state = problem.initial_state()
    first, updates = state.average["images"], []
    for _ in range(5):
        outer_iteration(problem, state)
        updates.append(state.parameters["images"].value)
    weights = [(1 - beta) * beta ** (5 - k) for k in range(1, 6)]
    # not divided by 1 - beta^k
    expected = beta**5 * first + sum(
        weight * images for weight, images in zip(weights, updates, strict=True)
    )
    torch.testing.assert_close(state.average["images"], expected)
    assert (updates[-1] - first).abs().max() > 0.01
