"""Time of an expert's training step: ours beside the same loop in eager PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gpu_stages.measure import measure
from gpu_stages.settings import Record, Settings
from trajmatch import networks, ops, random
from trajmatch.data import DSA, ChannelNormalisation

LR = 0.01


def run(settings: Settings, record: Record) -> None:
    """The plain SGD step of MTT's experts: batch 256, width 128, no momentum."""
    width, depth, size, batch, steps = (4, 2, 8, 8, 2) if settings.quick else (128, 3, 32, 256, 20)
    draw = random.generator(0, "gpu_check", "expert")
    pixels = torch.randint(0, 256, (batch, 3, size, size), generator=draw, dtype=torch.uint8)
    pixels = pixels.to(settings.device)
    labels = (torch.arange(batch) % 10).to(settings.device)
    network = networks.ConvNet(3, 10, size, width=width, depth=depth)
    networks.initialise(network, draw).to(settings.device)
    normalise = ChannelNormalisation((0.5,) * 3, (0.25,) * 3, settings.device).apply
    images = normalise(pixels)

    loops = {
        "trajmatch": ours(network, lambda: images, labels, steps),
        "trajmatch, with normalisation and DSA": ours(
            network, augmented(pixels, normalise), labels, steps
        ),
        "eager": eager(network, images, labels, steps, torch.contiguous_format),
        "eager, channels last": eager(network, images, labels, steps, torch.channels_last),
    }
    table: dict[str, Any] = {"width": width, "batch": batch, "steps_in_a_call": steps}
    for name, loop in loops.items():
        times = measure(loop, settings.device, 2 if settings.quick else 5, 2, longest=5.0)
        table[name] = {**times, "seconds_each": times["median"] / steps}
        record.put("table", table)
        print(f"{name}: {1000 * table[name]['seconds_each']:.3f} ms a step", flush=True)
    best = min(table[name]["median"] for name in loops if name.startswith("eager"))
    record.put("ratio", best / table["trajmatch"]["median"])


def ours(
    network: networks.ConvNet, batch: Callable[[], Tensor], labels: Tensor, steps: int
) -> Callable[[], None]:
    """The loop of :func:`trajmatch.experts.trajectory.train_lockstep`."""
    start = networks.flat_parameters(network)

    def loop() -> None:
        theta, buffer = start, None
        with torch.no_grad():
            for _ in range(steps):
                _, grad = ops.gradient(network, theta, batch(), labels)
                theta, buffer = ops.sgd_step(theta, grad, LR, buffer)

    return loop


def augmented(pixels: Tensor, normalise: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
    """A batch from pixels on the device, another one every time."""
    dsa, draw = DSA(), random.generator(0, "gpu_check", "expert", "dsa")
    return lambda: dsa(normalise(pixels), draw)


def eager(
    network: networks.ConvNet,
    images: Tensor,
    labels: Tensor,
    steps: int,
    memory_format: torch.memory_format,
) -> Callable[[], None]:
    """The same with modules, autograd and an optimiser of PyTorch."""
    model = networks.build(network.spec()).to(images.device)
    networks.load_flat_parameters(model, networks.flat_parameters(network))
    model.to(memory_format=memory_format)  # type: ignore[call-overload]
    images = images.contiguous(memory_format=memory_format)
    optimiser = torch.optim.SGD(model.parameters(), lr=LR)

    def loop() -> None:
        for _ in range(steps):
            optimiser.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimiser.step()

    return loop
