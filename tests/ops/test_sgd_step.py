"""The fused SGD step and its adjoint against their formulas."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from trajmatch import ops, reference

SIZES = [1, 31, 33, 257, 1009, 100_003]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("with_buffer", [False, True])
def test_step_and_gradients_match_the_reference(
    randn: Callable[..., Tensor], size: int, momentum: float, with_buffer: bool
) -> None:
    theta, grad = randn(size, grad=True), randn(size, grad=True)
    lr = torch.tensor(0.3, dtype=torch.float64, device=theta.device, requires_grad=True)
    buffer = randn(size, grad=True) if with_buffer else None
    inputs = [theta, grad, lr, *([buffer] if buffer is not None else [])]
    above = [randn(size), randn(size)]
    results = []
    for functions in (ops, reference):
        out = functions.sgd_step(theta, grad, lr, buffer, momentum)
        results.append([*out, *torch.autograd.grad(out, inputs, above)])
    torch.testing.assert_close(*results)


def test_float32_is_the_rounded_step(randn: Callable[..., Tensor]) -> None:
    theta, grad = randn(1009, dtype=torch.float32), randn(1009, dtype=torch.float32)
    new, buffer = ops.sgd_step(theta, grad, 0.25)
    assert torch.equal(buffer, grad)
    torch.testing.assert_close(new, theta - 0.25 * grad, rtol=1e-6, atol=1e-6)


def test_three_steps_equal_torch_optim(randn: Callable[..., Tensor]) -> None:
    start, grads = randn(17), [randn(17) for _ in range(3)]
    parameter = torch.nn.Parameter(start.clone())
    optimiser = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    theta, buffer = start, None
    for grad in grads:
        parameter.grad = grad.clone()
        optimiser.step()
        theta, buffer = ops.sgd_step(theta, grad, 0.1, buffer, 0.9)
    torch.testing.assert_close(theta, parameter.detach())


def test_gradcheck_and_gradgradcheck(randn: Callable[..., Tensor]) -> None:
    inputs = [randn(5, grad=True), randn(5, grad=True), randn(grad=True), randn(5, grad=True)]

    def step(*arguments: Tensor) -> tuple[Tensor, Tensor]:
        return ops.sgd_step(*arguments, momentum=0.7)

    def adjoint(*arguments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return ops.sgd_step_adjoint(*arguments, momentum=0.7)

    assert torch.autograd.gradcheck(step, inputs)
    assert torch.autograd.gradgradcheck(step, inputs)
    assert torch.autograd.gradcheck(adjoint, [inputs[0], inputs[1], inputs[3], inputs[2]])


@pytest.mark.parametrize("grad", [False, True])
def test_opcheck(randn: Callable[..., Tensor], grad: bool) -> None:
    theta, gradient, buffer = (randn(9, grad=grad) for _ in range(3))
    lr = randn(grad=grad)
    for last in (None, buffer):
        torch.library.opcheck(
            torch.ops.trajmatch.sgd_step.default, (theta, gradient, lr, last, 0.5)
        )
        torch.library.opcheck(
            torch.ops.trajmatch.sgd_step_adjoint.default, (theta, last, gradient, lr, 0.5)
        )


def test_errors_say_what_came() -> None:
    ones = torch.ones(3)
    with pytest.raises(ValueError, match=r"expected grad to have shape \[3\], but got \[2\]"):
        ops.sgd_step(ones, torch.ones(2), 0.1)
    with pytest.raises(ValueError, match=r"expected lr to have shape \[\], but got \[1\]"):
        ops.sgd_step(ones, ones, torch.ones(1))
    with pytest.raises(TypeError, match="expected buffer to be float32, but got float64"):
        ops.sgd_step(ones, ones, 0.1, ones.double())
