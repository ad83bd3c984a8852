"""Memory and time of outer iterations with DATM's settings for CIFAR-100 at 10 images per class.

    python benchmarks/datm_memory.py --outer-iterations 2

1,000 synthetic images with logit labels, all of them in each of N = 80 student steps, ConvNet of
width 128, 100 classes, differentiable augmentation. Images and expert are random: memory does not
depend on what they hold. Images, labels and step size are updated after each iteration. Prints
JSON; the status is 1 if the peak exceeds the limit.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from bench import facts
from bench.timing import seconds

from trajmatch import files, networks, ops
from trajmatch.cli.arguments import parse
from trajmatch.data.dsa import DSA
from trajmatch.memory import keep_freed_memory, peak_bytes
from trajmatch.random import generator


@dataclass(frozen=True, kw_only=True)
class DatmConfig:
    """Run outer iterations of DATM's size and report the peak of memory."""

    outer_iterations: int = 2
    """Outer iterations to run."""
    steps: int = 80
    """N: student steps in each."""
    batch: int = 1000
    """Synthetic images, all of which are in each step."""
    width: int = 128
    """Channels of the ConvNet."""
    classes: int = 100
    """Classes."""
    tape_bytes: int = 0
    """Memory that activations may be kept in."""
    dsa: str = "color_crop_cutout_flip_scale_rotate"
    """Augmentation; none switches it off."""
    limit_gb: float = 12.0
    """What the peak is held against, in 10^9 bytes."""
    device: str = "cpu"
    """Where to run: cpu, cuda or cuda:N."""
    out: Path | None = None
    """A file for the record, besides printing it."""


def run(config: DatmConfig) -> dict[str, Any]:
    """Runs the iterations and returns the record."""
    device = config.device
    draws = generator(0, "bench", "datm")
    model = networks.ConvNet(3, config.classes, 32, width=config.width)
    networks.initialise(model, draws)
    start = networks.flat_parameters(model).to(device)
    target = start + 0.01 * torch.randn(start.shape, generator=draws).to(device)
    images = torch.randn(config.batch, 3, 32, 32, generator=draws).to(device).requires_grad_()
    logits = torch.randn(config.batch, config.classes, generator=draws).to(device)
    logits.requires_grad_()
    lr = torch.tensor(0.01, device=device, requires_grad=True)
    optimiser = torch.optim.SGD([images, logits, lr], lr=1e-3)
    batches = torch.stack(
        [torch.randperm(config.batch, generator=draws) for _ in range(config.steps)]
    ).to(device)
    losses = []

    def outer_iteration() -> None:
        end = ops.unroll(
            model.to(device),
            start,
            images,
            logits,
            lr,
            batches,
            augment=None if config.dsa == "none" else DSA(config.dsa).replay(seed=len(losses)),
            tape_bytes=config.tape_bytes,
        )
        loss = ops.param_distance(end, target, start)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))

    taken = [seconds(outer_iteration, device) for _ in range(config.outer_iterations)]
    peak = peak_bytes(device)
    return {
        "settings": {name: value for name, value in asdict(config).items() if name != "out"},
        "machine": facts.machine(device),
        "origin": facts.origin(),
        "losses": losses,
        "seconds": taken,
        "peak_bytes": peak,
        "within_limit": peak <= config.limit_gb * 1e9,
    }


def main() -> int:
    """Runs the program; returns its exit status."""
    config = parse(DatmConfig, sys.argv[1:], "benchmarks/datm_memory.py")
    keep_freed_memory()
    record = run(config)
    print(json.dumps(record, indent=2, sort_keys=True))
    if config.out is not None:
        files.write_json(config.out, record)
    return 0 if record["within_limit"] else 1


if __name__ == "__main__":
    sys.exit(main())
