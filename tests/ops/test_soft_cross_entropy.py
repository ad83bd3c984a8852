"""Cross-entropy with indices and with logits as labels, and its two derivatives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trajmatch import ops, reference

SHAPES = [(1, 2), (3, 5), (10, 10), (33, 7), (4, 1009)]


def labels_for(logits: Tensor, soft: bool, randn: Callable[..., Tensor]) -> Tensor:
    rows, classes = logits.shape
    if soft:
        return 3 * randn(rows, classes).to(logits.dtype)
    return torch.arange(rows, device=logits.device) * 7 % classes


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("soft", [False, True])
def test_value_and_gradients_match_the_reference(
    randn: Callable[..., Tensor],
    shape: tuple[int, int],
    soft: bool,
    dtype: torch.dtype,
    tolerance: Callable,
) -> None:
    logits = (5 * randn(*shape)).to(dtype).requires_grad_()
    targets = labels_for(logits, soft, randn).requires_grad_(soft)
    inputs = [logits, targets] if soft else [logits]
    exact = [each.detach().double().requires_grad_() for each in inputs]
    loss = ops.soft_cross_entropy(logits, targets)
    wanted = reference.soft_cross_entropy(exact[0], exact[1] if soft else targets)
    torch.testing.assert_close(loss.double(), wanted, **tolerance(dtype))
    for got, right in zip(
        torch.autograd.grad(2 * loss, inputs), torch.autograd.grad(2 * wanted, exact), strict=True
    ):
        torch.testing.assert_close(got.double(), right, **tolerance(dtype))


def test_huge_logits_stay_finite(device: torch.device) -> None:
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], device=device)
    labels = torch.tensor([0, 0], device=device)
    assert ops.soft_cross_entropy(logits, labels).item() == 1e4


def test_target_logits_of_a_one_hot_row_equal_the_index(randn: Callable[..., Tensor]) -> None:
    logits = randn(4, 3)
    index = torch.tensor([0, 2, 1, 1], device=logits.device)
    targets = torch.where(F.one_hot(index, 3).bool(), 0.0, -1e9).double()
    torch.testing.assert_close(
        ops.soft_cross_entropy(logits, targets), F.cross_entropy(logits, index)
    )


@pytest.mark.parametrize("soft", [False, True])
def test_gradcheck_and_gradgradcheck(randn: Callable[..., Tensor], soft: bool) -> None:
    logits = randn(4, 3, grad=True)
    targets = labels_for(logits, soft, randn).requires_grad_(soft)
    assert torch.autograd.gradcheck(ops.soft_cross_entropy, (logits, targets))
    assert torch.autograd.gradgradcheck(ops.soft_cross_entropy, (logits, targets))


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_opcheck(randn: Callable[..., Tensor], soft: bool, grad: bool) -> None:
    logits = randn(4, 3, grad=grad)
    targets = labels_for(logits, soft, randn).requires_grad_(soft and grad)
    torch.library.opcheck(torch.ops.trajmatch.soft_cross_entropy.default, (logits, targets))
    one = torch.ones((), dtype=torch.float64, device=logits.device)
    torch.library.opcheck(
        torch.ops.trajmatch.soft_cross_entropy_backward.default, (one, logits, targets)
    )
    torch.library.opcheck(
        torch.ops.trajmatch.soft_cross_entropy_backward_tangent.default,
        (one, logits.detach(), targets.detach(), randn(4, 3), randn(4, 3) if soft else None),
    )


def test_a_third_derivative_is_refused(randn: Callable[..., Tensor]) -> None:
    logits = randn(4, 3, grad=True)
    labels = torch.tensor([0, 1, 2, 0], device=logits.device)
    (first,) = torch.autograd.grad(
        ops.soft_cross_entropy(logits, labels), logits, create_graph=True
    )
    (second,) = torch.autograd.grad(first.square().sum(), logits, create_graph=True)
    with pytest.raises(NotImplementedError, match="is not differentiable"):
        torch.autograd.grad(second.square().sum(), logits)


def test_errors_say_what_came() -> None:
    logits = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"expected targets to lie in \[0, 3\), but got 3"):
        ops.soft_cross_entropy(logits, torch.tensor([0, 3]))
    with pytest.raises(ValueError, match=r"expected targets to lie in \[0, 3\), but got -1"):
        ops.soft_cross_entropy(logits, torch.tensor([-1, 0]))
    with pytest.raises(ValueError, match=r"expected targets to have shape \[2\], but got \[3\]"):
        ops.soft_cross_entropy(logits, torch.tensor([0, 1, 2]))
    with pytest.raises(TypeError, match="expected targets to be float32, but got float64"):
        ops.soft_cross_entropy(logits, torch.zeros(2, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match="expected logits to have at least one row"):
        ops.soft_cross_entropy(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
