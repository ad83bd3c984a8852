"""Every kernel of ours with no library convolution between them: the same bits twice.

Also what runs under compute-sanitizer's racecheck, whose instrumentation and the convolution
library's kernels were seen to end in an illegal memory access on an H200 that neither gives alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from bench.operators import cases
from bench.variants import OuterGradient
from torch import Tensor

from gpu_stages.agreement import SMALLEST, has_network
from gpu_stages.outer_iteration import with_blocks
from gpu_stages.settings import Record, Settings
from trajmatch import networks, ops, random

#: Choices of ops.cuda_blocks that leave no convolution to the library.
BLOCKS = ("tf32", "fp16")
#: Width, depth and image size of a network that all kernels of blocks take.
NETWORK = (32, 2, 32)


def run(settings: Settings, record: Record) -> None:
    """Run everything twice; results that differ, or are not finite, are a fault."""
    for name, (first, second) in results(settings):
        finite = all(bool(each.isfinite().all()) for each in first)
        same = all(torch.equal(*pair) for pair in zip(first, second, strict=True))
        record.put(name, {"finite": finite, "equal_bits": same})
        if not finite:
            record.fault(f"{name}: a result is not finite")
        if not same:
            record.fault(f"{name}: two runs on {settings.device} gave different bits")


def results(settings: Settings) -> Iterator[tuple[str, list[list[Tensor]]]]:
    """Names, and the results of two runs."""
    for case in cases(True, SMALLEST):
        if not has_network(case):
            runs = (case.on(ops, settings.device, torch.float32)() for _ in range(2))
            yield case.name, [[each.detach() for each in results] for results in runs]
    for kind in BLOCKS:
        for tape_bytes in (0, 2**30):
            unroll = with_blocks(kind, lambda kept=tape_bytes: outer(settings.device, kept))
            yield f"{kind}, tape of {tape_bytes} bytes", [list(unroll()) for _ in range(2)]


def outer(device: str, tape_bytes: int) -> OuterGradient:
    """Two student steps on batches of two images, and their gradient."""
    width, depth, image_size = NETWORK
    draw = random.generator(0, "gpu_check", "own_kernels")
    model = networks.ConvNet(3, 4, image_size, width=width, depth=depth)
    networks.initialise(model, draw).to(device)
    theta = networks.flat_parameters(model).detach()
    images = torch.randn(3, 3, image_size, image_size, generator=draw).to(device).requires_grad_()
    lr = torch.tensor(0.05, device=device, requires_grad=True)
    batches = torch.tensor([[0, 1], [2, 0]], device=device)
    labels = torch.arange(3, device=device)
    end = ops.unroll(model, theta, images, labels, lr, batches, tape_bytes=tape_bytes)
    value = end.square().sum()
    return OuterGradient(value.detach(), *torch.autograd.grad(value, (images, lr)))
