"""The matching loss against its formula."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from trajmatch import ops, reference

SIZES = [1, 31, 33, 255, 257, 1009, 100_003]


@pytest.fixture
def vectors(randn: Callable[..., Tensor]) -> Callable[..., list[Tensor]]:
    return lambda size, **kwargs: [randn(size, **kwargs) for _ in range(3)]


@pytest.mark.parametrize("size", SIZES)
def test_value_and_gradients_match_the_reference(
    vectors: Callable[..., list[Tensor]], size: int, dtype: torch.dtype, tolerance: Callable
) -> None:
    inputs = vectors(size, dtype=dtype, grad=True)
    exact = [each.detach().double().requires_grad_() for each in inputs]
    loss, wanted = ops.param_distance(*inputs), reference.param_distance(*exact)
    torch.testing.assert_close(loss.double(), wanted, **tolerance(dtype))
    for got, right in zip(
        torch.autograd.grad(3 * loss, inputs), torch.autograd.grad(3 * wanted, exact), strict=True
    ):
        torch.testing.assert_close(got.double(), right, **tolerance(dtype))


def test_value_by_hand(device: torch.device) -> None:
    ones = torch.ones(3, device=device)
    assert ops.param_distance(ones, 0 * ones, 2 * ones).item() == 0.25


def test_gradcheck_and_gradgradcheck(vectors: Callable[..., list[Tensor]]) -> None:
    inputs = vectors(7, grad=True)
    assert torch.autograd.gradcheck(ops.param_distance, inputs)
    assert torch.autograd.gradgradcheck(ops.param_distance, inputs)


@pytest.mark.parametrize("grad", [False, True])
def test_opcheck(vectors: Callable[..., list[Tensor]], grad: bool) -> None:
    inputs = vectors(9, grad=grad)
    torch.library.opcheck(torch.ops.trajmatch.param_distance.default, inputs)
    loss, sums = torch.ops.trajmatch.param_distance(*inputs)
    torch.library.opcheck(
        torch.ops.trajmatch.param_distance_backward.default,
        (torch.ones_like(loss).detach(), *inputs, sums.detach()),
    )


def test_accepts_strided_vectors(vectors: Callable[..., list[Tensor]]) -> None:
    inputs = [each[::2] for each in vectors(20)]
    torch.testing.assert_close(ops.param_distance(*inputs), reference.param_distance(*inputs))


def test_is_bitwise_repeatable(vectors: Callable[..., list[Tensor]]) -> None:
    inputs = vectors(100_003, dtype=torch.float32)
    assert torch.equal(ops.param_distance(*inputs), ops.param_distance(*inputs))


def test_does_not_depend_on_the_number_of_threads(vectors: Callable[..., list[Tensor]]) -> None:
    inputs = vectors(100_003, dtype=torch.float32)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(ops.param_distance(*inputs))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_errors_say_what_came() -> None:
    ones = torch.ones(3)
    with pytest.raises(ValueError, match=r"expected target to have shape \[3\], but got \[4\]"):
        ops.param_distance(ones, torch.ones(4), ones)
    with pytest.raises(TypeError, match="expected student to be float32 or float64, but got int64"):
        ops.param_distance(ones.long(), ones, ones)
    with pytest.raises(TypeError, match="expected start to be float32, but got float64"):
        ops.param_distance(ones, ones, ones.double())
    with pytest.raises(ValueError, match="expected student to have at least one element"):
        ops.param_distance(*[torch.ones(0)] * 3)
    with pytest.raises(
        ValueError, match=r"expected student to have 1 dimensions, but got \[1, 3\]"
    ):
        ops.param_distance(*[torch.ones(1, 3)] * 3)
