"""Operators inside of torch.func: the same gradients as by torch.autograd, or a clear refusal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trajmatch import networks, ops

Check = Callable[..., None]
EITHER = pytest.mark.parametrize("engine", [True, False])
ADAM = ops.Adam(eps=1e-4)


def model_of(engine: bool, device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    if engine:
        return networks.ConvNet(3, 4, 8, 4, 2).to(device)
    layers = (nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.GELU())
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(36, 4)).to(device)


def unroll_of(model: nn.Module, optimiser: Any) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """A loss of start, images, labels and learning rate, and a point."""
    start = networks.flat_parameters(model).double()
    draws = [torch.randn(shape, dtype=torch.float64) for shape in ((6, 3, 8, 8), (6, 4))]
    inputs = [start, *draws, torch.tensor(0.05, dtype=torch.float64)]
    inputs = [each.to(start.device) for each in inputs]
    batches = torch.tensor([[0, 1, 2], [3, 4, 5], [1, 3, 0]], device=start.device)

    def loss(*given: Tensor) -> Tensor:
        end = ops.unroll(model, *given, batches, optimiser=optimiser)
        return ops.param_distance(end, start + 1, given[0]) + end.sum()

    return loss, inputs


@EITHER
@pytest.mark.parametrize("optimiser", [ops.SGD(0.9), ADAM])
def test_unroll(
    device: torch.device, assert_close_as_vectors: Check, engine: bool, optimiser: Any
) -> None:
    loss, inputs = unroll_of(model_of(engine, device), optimiser)
    leaves = [each.clone().requires_grad_() for each in inputs]
    wanted = torch.autograd.grad(loss(*leaves), leaves)
    assert_close_as_vectors(torch.func.grad(loss, (0, 1, 2, 3))(*inputs), wanted, 1e-14)
    value, pull = torch.func.vjp(loss, *inputs)
    assert_close_as_vectors(pull(torch.ones_like(value)), wanted, 1e-14)
    rows = torch.func.jacrev(loss, (0, 1, 2, 3), chunk_size=1)(*inputs)
    assert_close_as_vectors(rows, wanted, 1e-14)
    # Inside of another transform, whose variable the gradient does not depend on.
    outer = torch.func.grad(lambda scale: scale * torch.func.grad(loss)(*inputs).sum())
    assert_close_as_vectors([outer(value)], [wanted[0].sum()], 1e-12)
    # Inside of a graph of torch.autograd.
    value, _ = torch.func.vjp(lambda x: loss(x, *leaves[1:]), inputs[0])
    assert_close_as_vectors(torch.autograd.grad(value, leaves[1:]), wanted[1:], 1e-14)


@EITHER
def test_second_derivatives_of_unroll_are_refused(device: torch.device, engine: bool) -> None:
    loss, (start, images, *rest) = unroll_of(model_of(engine, device), ADAM)
    with pytest.raises(NotImplementedError, match=r"reference\.unroll has derivatives of any"):
        torch.func.grad(lambda x: torch.func.grad(loss, 1)(start, x, *rest).sum())(images)
    leaf = images.clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(start, leaf, *rest), leaf, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"reference\.unroll has derivatives of any"):
        torch.autograd.grad(first.sum(), leaf)


@EITHER
def test_vmap_is_a_loop_over_operators_and_refused_on_autograd(
    device: torch.device, engine: bool
) -> None:
    loss, (*rest, lr) = unroll_of(model_of(engine, device), ADAM)
    lrs = torch.stack([lr, 2 * lr])
    if engine:
        wanted = torch.stack([loss(*rest, each) for each in lrs])
        assert torch.equal(torch.vmap(lambda each: loss(*rest, each))(lrs), wanted)
        return
    with pytest.raises(
        NotImplementedError, match=r"trajmatch::unroll: torch.func.vmap .* supported"
    ):
        torch.vmap(lambda each: loss(*rest, each))(lrs)


def operators(device: torch.device) -> dict[str, tuple[Callable[[Tensor], Tensor], Tensor]]:
    """A scalar of every differentiable operator, and a point."""
    model = model_of(True, device)
    theta = networks.flat_parameters(model).double()
    images = torch.randn(3, 3, 8, 8, dtype=torch.float64, device=device)
    logits = torch.randn(3, 4, dtype=torch.float64, device=device)
    hard, ones = torch.arange(3, device=device), torch.ones_like(theta)
    rows = ops.dsa_parameters.rotate(torch.linspace(-0.2, 0.2, 3)).to(device)
    return {
        "param_distance": (lambda x: ops.param_distance(x, ones, theta), theta + 0.1),
        "sgd_step": (lambda x: ops.sgd_step(x, x.sin(), 0.1, x.cos(), 0.9)[0].sum(), theta),
        "norm_act_pool": (lambda x: ops.norm_act_pool(x).square().sum(), images),
        "dsa": (lambda x: ops.dsa(x, rows).square().sum(), images),
        "soft_cross_entropy": (lambda x: ops.soft_cross_entropy(x, logits.cos()), logits),
        "gradient": (lambda x: ops.gradient(model, x, images, hard)[1].square().sum(), theta),
    }


@pytest.mark.parametrize("name", operators(torch.device("cpu")))
def test_other_operators(device: torch.device, assert_close_as_vectors: Check, name: str) -> None:
    function, point = operators(device)[name]
    leaf = point.clone().requires_grad_()
    first = torch.func.grad(function)
    assert_close_as_vectors(
        [first(point)], torch.autograd.grad(function(leaf), leaf, create_graph=True), 1e-14
    )
    if name != "gradient":
        (wanted,) = torch.autograd.grad(function(leaf), leaf, create_graph=True)
        (wanted,) = torch.autograd.grad(wanted.square().sum(), leaf)
        second = torch.func.grad(lambda x: first(x).square().sum())(point)
        assert_close_as_vectors([second], [wanted], 1e-13)
