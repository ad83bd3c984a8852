"""Each fused operator with its backward pass, beside the same in eager PyTorch.

pytest benchmarks/bench_ops.py --benchmark-columns=min,median
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch

from trajmatch import ops, reference
from trajmatch.data import DSA

IMPLEMENTATIONS = [
    pytest.param(ops, id="trajmatch"),
    pytest.param(reference, id="eager"),
]
#: Parameters of the CIFAR-10 ConvNet at width 128.
PARAMETERS = 320_010


@pytest.fixture(params=IMPLEMENTATIONS)
def functions(request: pytest.FixtureRequest) -> ModuleType:
    module: ModuleType = request.param
    return module


def bench_param_distance(
    timed: Callable[..., None], device: torch.device, functions: ModuleType
) -> None:
    student, target, start = (torch.randn(PARAMETERS, device=device) for _ in range(3))
    student.requires_grad_()

    def call() -> None:
        torch.autograd.grad(functions.param_distance(student, target, start), student)

    timed(call, f"param_distance, {device.type}")


def bench_sgd_step(timed: Callable[..., None], device: torch.device, functions: ModuleType) -> None:
    theta, grad, buffer = (
        torch.randn(PARAMETERS, device=device, requires_grad=True) for _ in range(3)
    )
    lr = torch.tensor(0.01, device=device, requires_grad=True)
    above = [torch.randn(PARAMETERS, device=device) for _ in range(2)]

    def call() -> None:
        out = functions.sgd_step(theta, grad, lr, buffer, 0.9)
        torch.autograd.grad(out, (theta, grad, lr, buffer), above)

    timed(call, f"sgd_step, {device.type}")


def bench_soft_cross_entropy(
    timed: Callable[..., None], device: torch.device, functions: ModuleType
) -> None:
    logits, targets = (torch.randn(100, 100, device=device, requires_grad=True) for _ in range(2))

    def call() -> None:
        torch.autograd.grad(functions.soft_cross_entropy(logits, targets), (logits, targets))

    timed(call, f"soft_cross_entropy, {device.type}")


@pytest.mark.parametrize("batch", [10, 256])
@pytest.mark.parametrize("group", ["color", "crop", "cutout", "flip", "scale", "rotate"])
def bench_dsa(
    timed: Callable[..., None],
    device: torch.device,
    functions: ModuleType,
    group: str,
    batch: int,
) -> None:
    images = torch.randn(batch, 3, 32, 32, device=device, requires_grad=True)
    rows = DSA(group).draw(batch, 32, 32, torch.Generator().manual_seed(0)).rows.to(device)
    above = torch.randn(batch, 3, 32, 32, device=device)

    def call() -> None:
        torch.autograd.grad(functions.dsa(images, rows), images, above)

    timed(call, f"dsa {group}, batch {batch}, {device.type}")


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("pooling", ["average", "max"])
def bench_norm_act_pool(
    timed: Callable[..., None],
    device: torch.device,
    functions: ModuleType,
    pooling: str,
    order: int,
) -> None:
    x = torch.randn(50, 32, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    inputs = [x, torch.ones(32, device=device), torch.zeros(32, device=device)]
    for each in inputs:
        each.requires_grad_()
    above = torch.randn(50, 32, 16, 16, device=device)
    above = above.contiguous(memory_format=torch.channels_last)

    def call() -> None:
        out = functions.norm_act_pool(*inputs, pooling=pooling)
        grads = torch.autograd.grad(out, inputs, above, create_graph=order == 2)
        if order == 2:
            torch.autograd.grad(grads, inputs, [each.detach() for each in grads])

    timed(call, f"norm_act_pool {pooling}, derivative {order}, {device.type}")
