"""Cost of replaying an unrolled loop's state on autograd, in alternating rounds, on one thread.

python benchmarks/replay_cost.py [--rounds N]
"""

from __future__ import annotations

import argparse
import sys
from statistics import median
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn

from trajmatch import networks, ops
from trajmatch.ops.loop import Loop
from trajmatch.ops.replay import Fingerprints

# Network, image size, batch, steps.
SIZES = [
    ("convnet:batch,width=16,depth=2", 16, 4, 10),
    ("convnet:batch,width=32,depth=3", 32, 10, 20),
    ("convnet:batch,width=128,depth=3", 32, 10, 6),
    ("resnet18:batch,width=16", 32, 10, 4),
]


class Unchecked(Loop):
    """A loop that restores nothing and compares nothing."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.fixed = True


class NoFingerprints(Fingerprints):
    """Fingerprints that are never taken."""

    def record(self, step: int, values: Tensor) -> None:
        """Keep nothing."""

    def repeat(self, step: int, values: Tensor) -> None:
        """Keep nothing."""


class Uncompared(Loop):
    """A loop that restores its state and does not compare its steps."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.fingerprints = NoFingerprints()


def main() -> None:
    """Print the CPU time of a gradient: whole, without the comparison, and without any replay."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    for text, size, batch, steps in SIZES:
        model = networks.build(networks.specify(text, 3, 10, size))
        networks.initialise(model, torch.Generator().manual_seed(0))
        images = torch.randn(50, 3, size, size).requires_grad_()
        batches = torch.stack([torch.randperm(50)[:batch] for _ in range(steps)])
        times: dict[type[Loop], list[float]] = {Loop: [], Uncompared: [], Unchecked: []}
        seconds(Loop, model, images, batches)
        for number in range(rounds):
            for kind in sorted(times, key=lambda each: each.__name__, reverse=number % 2 == 1):
                times[kind].append(seconds(kind, model, images, batches))
        whole, uncompared, plain = (median(each) for each in times.values())
        print(
            f"{text}, batch {batch}, N {steps}: {whole * 1e3:.1f} ms; without the comparison of "
            f"steps {uncompared * 1e3:.1f}, ratio {whole / uncompared:.3f}; without any replay "
            f"{plain * 1e3:.1f}, ratio {whole / plain:.3f}",
            flush=True,
        )


def seconds(kind: type[Loop], model: nn.Module, images: Tensor, batches: Tensor) -> float:
    """CPU seconds of one gradient in the images."""
    vars(sys.modules[ops.unroll.__module__])["Loop"] = kind
    theta, labels = networks.flat_parameters(model), torch.arange(len(images)) % 10
    started = process_time()
    end = ops.unroll(model, theta, images, labels, 0.01, batches)
    torch.autograd.grad(end.square().sum(), images)
    return process_time() - started


if __name__ == "__main__":
    main()
