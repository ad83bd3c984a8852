"""Norm, activation and pooling in one operation against PyTorch's, through two derivatives."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from trajmatch import ops, reference
from trajmatch.block import ACTIVATIONS, IMAGE_NORMS, POOLINGS

CHOICES = list(itertools.product(IMAGE_NORMS, ACTIVATIONS, POOLINGS))
# Batch, channels, height, width: odd and even planes, channels that fill no vector, one pixel row.
SHAPES = [(1, 4, 2, 2), (2, 8, 5, 4), (3, 20, 4, 7), (2, 36, 3, 3)]


def parameters(
    randn: Callable[..., Tensor], norm: str, shape: tuple[int, ...]
) -> tuple[Tensor | None, Tensor | None]:
    if norm == "none":
        return None, None
    sizes = shape[1:] if norm == "layer" else shape[1:2]
    return randn(*sizes, grad=True), randn(*sizes, grad=True)


def first_and_second(
    functions: object, inputs: list[Tensor], above: Tensor, directions: list[Tensor], **choices: str
) -> list[Tensor]:
    """Value, gradients, and the gradients of <gradients, directions>."""
    out = functions.norm_act_pool(*inputs, **choices)  # type: ignore[attr-defined]
    grads = torch.autograd.grad(out, inputs, above, create_graph=True)
    along = sum((grad * way).sum() for grad, way in zip(grads, directions, strict=True))
    wanted = [*inputs, above]
    seconds = torch.autograd.grad(along, wanted, materialize_grads=True)
    return [out, *grads, *seconds]


@pytest.mark.parametrize(("norm", "activation", "pooling"), CHOICES)
def test_value_and_both_derivatives_match_the_reference(
    randn: Callable[..., Tensor], norm: str, activation: str, pooling: str
) -> None:
    choices = {"norm": norm, "activation": activation, "pooling": pooling}
    for shape in SHAPES:
        x = randn(*shape, grad=True)
        inputs = [each for each in (x, *parameters(randn, norm, shape)) if each is not None]
        above = torch.randn_like(reference.norm_act_pool(*inputs, **choices)).requires_grad_()
        directions = [torch.randn_like(each) for each in inputs]
        results = [
            first_and_second(functions, inputs, above, directions, **choices)
            for functions in (ops, reference)
        ]
        torch.testing.assert_close(*results, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("isa_size", [(4, 128, 8, 8), (3, 33, 7, 9), (2, 23, 6, 5)])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_float32_is_close_to_float64(
    randn: Callable[..., Tensor], isa_size: tuple[int, ...], pooling: str
) -> None:
    # A smooth activation: the float32 result is judged, not on which side of 0 an input falls.
    choices = {"norm": "instance", "activation": "sigmoid", "pooling": pooling}
    inputs = [randn(*isa_size), randn(isa_size[1]), randn(isa_size[1])]
    single = [each.float().requires_grad_() for each in inputs]
    double = [each.detach().float().double().requires_grad_() for each in inputs]
    above = torch.randn_like(reference.norm_act_pool(*double, **choices)).float().double()
    directions = [torch.randn_like(each).float().double() for each in double]
    ours = first_and_second(
        ops,
        single,
        above.float().requires_grad_(),
        [each.float() for each in directions],
        **choices,
    )
    exact = first_and_second(reference, double, above.requires_grad_(), directions, **choices)
    for got, wanted in zip(ours, exact, strict=True):
        error = ((got.double() - wanted).norm() / wanted.norm()).item()
        assert error < 5e-6


def test_max_pooling_takes_the_first_of_equal_values(device: torch.device) -> None:
    x = torch.zeros(1, 1, 2, 2, dtype=torch.float64, device=device, requires_grad=True)
    ops.norm_act_pool(x, norm="none", activation="none", pooling="max").sum().backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [1.0, 0.0, 0.0, 0.0]


def test_one_value_per_group_normalises_to_the_bias(device: torch.device) -> None:
    x = torch.randn(3, 4, 1, 1, dtype=torch.float64, device=device)
    bias = torch.arange(4.0, dtype=torch.float64, device=device)
    out = ops.norm_act_pool(x, None, bias, norm="instance", activation="none", pooling="none")
    assert torch.equal(out, bias.view(1, 4, 1, 1).expand(3, 4, 1, 1))


def test_a_large_mean_costs_no_digits(device: torch.device) -> None:
    x = torch.randn(1, 2, 8, 8, dtype=torch.float64, device=device)
    choices = {"norm": "instance", "activation": "none", "pooling": "none"}
    shifted = ops.norm_act_pool((x + 1e3).float(), **choices).double()
    exact = reference.norm_act_pool((x + 1e3).float().double(), **choices)
    assert (shifted - exact).abs().max() < 1e-4


@pytest.mark.parametrize("norm", IMAGE_NORMS)
def test_gradcheck_and_gradgradcheck(randn: Callable[..., Tensor], norm: str) -> None:
    shape = (2, 4, 3, 2)
    inputs = [randn(*shape, grad=True), *parameters(randn, norm, shape)]

    def function(*arguments: Tensor) -> Tensor:
        return ops.norm_act_pool(*arguments, norm=norm, activation="sigmoid", pooling="average")

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("elementwise", [False, True])
def test_opcheck(randn: Callable[..., Tensor], grad: bool, elementwise: bool) -> None:
    op = torch.ops.trajmatch
    sizes = (4, 5, 6) if elementwise else (4,)
    x, weight, bias = randn(2, 4, 5, 6, grad=grad), randn(*sizes, grad=grad), randn(*sizes)
    choices = (1 if elementwise else 4, elementwise, 1, 1, 1e-5)
    torch.library.opcheck(op.norm_act_pool.default, (x, weight, bias, *choices))
    out, mean, rstd = (each.detach() for each in op.norm_act_pool(x, weight, bias, *choices))
    above = torch.randn_like(out).requires_grad_(grad)
    primal = (x, weight, bias, mean, rstd)
    torch.library.opcheck(op.norm_act_pool_backward.default, (above, *primal, *choices))
    primal = tuple(each.detach() for each in primal)
    tangents = (torch.randn_like(primal[0]), torch.randn_like(primal[1]), None)
    torch.library.opcheck(op.norm_act_pool_tangent.default, (*primal, *tangents, *choices))
    _, mean_tangent, projection = op.norm_act_pool_tangent(*primal, *tangents, *choices)
    torch.library.opcheck(
        op.norm_act_pool_backward_tangent.default,
        (above.detach(), None, *primal, *tangents, mean_tangent, projection, *choices),
    )


def test_memory_format_of_the_input_does_not_matter(randn: Callable[..., Tensor]) -> None:
    x = randn(2, 4, 6, 6)
    out = ops.norm_act_pool(x)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(out, ops.norm_act_pool(x.contiguous(memory_format=torch.channels_last)))


def test_is_bitwise_repeatable(randn: Callable[..., Tensor]) -> None:
    inputs = [randn(5, 32, 8, 8, dtype=torch.float32, grad=True)]
    grads = [torch.autograd.grad(ops.norm_act_pool(*inputs).sum(), inputs)[0] for _ in range(2)]
    assert torch.equal(*grads)


def test_a_third_derivative_is_refused(randn: Callable[..., Tensor]) -> None:
    x = randn(1, 2, 2, 2, grad=True)
    out = ops.norm_act_pool(x, activation="sigmoid")
    (first,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="is not differentiable"):
        torch.autograd.grad(second.square().sum(), x)


def test_errors_say_what_came() -> None:
    x = torch.zeros(2, 6, 4, 4)
    with pytest.raises(ValueError, match=r"expected norm to be one of .*, but got 'batch'"):
        ops.norm_act_pool(x, norm="batch")
    with pytest.raises(ValueError, match="expected groups to divide the 6 channels of x"):
        ops.norm_act_pool(x, norm="group")
    with pytest.raises(ValueError, match=r"expected weight to have shape \[6\], but got \[5\]"):
        ops.norm_act_pool(x, torch.ones(5))
    with pytest.raises(ValueError, match="expected x to have at least 2 x 2 pixels to pool"):
        ops.norm_act_pool(torch.zeros(2, 6, 1, 4))
    with pytest.raises(ValueError, match=r"expected x to have 4 dimensions, but got \[2, 6\]"):
        ops.norm_act_pool(torch.zeros(2, 6))
    with pytest.raises(TypeError, match="expected x to be float32 or float64, but got float16"):
        ops.norm_act_pool(x.half())
