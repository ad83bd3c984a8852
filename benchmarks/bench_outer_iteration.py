"""One outer iteration of trajectory matching: N student steps and the gradient of the loss.

    pytest benchmarks/bench_outer_iteration.py --benchmark-columns=min,median

``eager`` is the unrolled graph of :mod:`trajmatch.reference` in both memory layouts, of which the
better one is the baseline. The sizes are a small student, a wider batch and the papers' width.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from trajmatch import networks, ops, reference

SIZES = [(32, 10, 20), (32, 50, 10), (128, 50, 6)]


@pytest.mark.parametrize(("width", "batch", "steps"), SIZES)
@pytest.mark.parametrize("implementation", ["trajmatch", "eager", "eager-channels-last"])
def bench_outer_iteration(
    timed: Callable[..., None],
    device: torch.device,
    width: int,
    batch: int,
    steps: int,
    implementation: str,
) -> None:
    torch.manual_seed(0)
    model = networks.ConvNet(3, 10, 32, width=width).to(device)
    theta = networks.flat_parameters(model)
    target = theta + 0.01 * torch.randn_like(theta)
    images = torch.randn(batch, 3, 32, 32, device=device)
    if implementation == "eager-channels-last":
        images = images.contiguous(memory_format=torch.channels_last)
    images.requires_grad_()
    labels = torch.arange(batch, device=device) % 10
    lr = torch.tensor(0.01, device=device, requires_grad=True)
    batches = torch.arange(batch, device=device).repeat(steps, 1)
    functions = ops if implementation == "trajmatch" else reference

    def outer_iteration() -> None:
        end = functions.unroll(model, theta, images, labels, lr, batches)
        torch.autograd.grad(functions.param_distance(end, target, theta), (images, lr))

    timed(outer_iteration, f"outer iteration, {device.type}, width {width}, {batch} x {steps}")
