"""Steps of the papers' networks beside the ConvNet on the engine, and the same on autograd.

    python benchmarks/bench_networks.py --out record.json

An unroll with its adjoint, and a gradient alone, which is most of an expert's step. The autograd
that it is compared with is our own adjoint over PyTorch's graph of one step, which runs what the
engine does not know: PyTorch's graph of all steps would be slower, and take more memory.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import partial

import bench  # noqa: F401  before torch, which reads its settings of OpenMP
import torch
from bench.agreement import relative
from bench.program import Row, compared, parser, program, report
from torch import Tensor, nn

from trajmatch import networks, ops

#: Name, images in a batch, student steps.
CASES = [
    ("mlp", 50, 20),
    ("lenet", 50, 20),
    ("alexnet:width=32", 50, 5),
    ("vgg11:width=16", 50, 5),
    ("vgg11:batch,width=16", 50, 5),
    ("resnet18:width=16", 50, 3),
    ("resnet18:batch,width=16", 50, 3),
    ("alexnet", 50, 3),
    ("vgg11", 50, 3),
]
TINY = [("mlp:width=4", 4, 2), ("alexnet:width=4", 4, 2), ("resnet18:batch,width=4", 4, 2)]
ROUNDS = 5
GRADIENT_BATCH, GRADIENT_ROUNDS = 256, 10
#: Largest relative difference from float64 over one step. Over several, VGG11's instance norms of
#: 2 x 2 pixels multiply what float32 rounds, on either path.
TOLERANCE = 1e-2


def on_autograd(model: nn.Module) -> nn.Module:
    """The same network as a class of its own, which the engine does not know."""
    model.__class__ = type("Unknown", (type(model),), {})
    assert ops.engine_for(model) == "autograd"
    return model


def unrolled(text: str, batch: int, steps: int, device: str, rounds: int) -> Row:
    """Time an unroll with its adjoint, after all agreed with float64 over one step."""
    torch.manual_seed(0)
    spec = networks.specify(text, 3, 10, 32)
    model = networks.build(spec).to(device)
    theta = networks.flat_parameters(model).detach()
    images = torch.randn(100, 3, 32, 32, device=device, requires_grad=True)
    labels = torch.arange(100, device=device) % 10
    lr = torch.tensor(0.01, device=device, requires_grad=True)
    batches = torch.randint(100, (steps, batch)).to(device)

    def gradients(
        student: nn.Module, tape_bytes: int, steps: int = steps, dtype: torch.dtype = torch.float32
    ) -> list[Tensor]:
        leaves = [each.to(dtype) for each in (theta, images, lr)]
        end = ops.unroll(
            student, *leaves[:2], labels, leaves[2], batches[:steps], tape_bytes=tape_bytes
        )
        return list(torch.autograd.grad(end.square().sum(), [images, lr]))

    other = on_autograd(networks.build(spec).to(device))
    tape = ops.tape_bytes(model, [batch] * steps, device=device)
    variants = {
        "trajmatch": partial(gradients, model, tape),
        "trajmatch without tape": partial(gradients, model, 0),
        "autograd": partial(gradients, other, 0),
    }
    exact = gradients(other.double(), 0, 1, torch.float64)
    other.float()
    differences = {name: max(map(relative, run(steps=1), exact)) for name, run in variants.items()}
    for run in variants.values():
        run()
    case = f"unroll and adjoint, {text}, batch {batch}, N = {steps}"
    agree = max(differences.values()) < TOLERANCE
    return compared(case, variants, rounds, device, differences=differences, agree=agree)


def gradient(text: str, batch: int, device: str, rounds: int) -> Row:
    """Time a gradient alone."""
    spec = networks.specify(text, 3, 10, 32)
    model, other = (networks.build(spec).to(device) for _ in range(2))
    theta = networks.flat_parameters(model).detach()
    images = torch.randn(batch, 3, 32, 32, device=device)
    labels = torch.arange(batch, device=device) % 10
    variants = {
        "trajmatch": partial(ops.gradient, model, theta, images, labels),
        "autograd": partial(ops.gradient, on_autograd(other), theta, images, labels),
    }
    case = f"gradient, {text}, batch {batch}"
    for _ in range(2):  # the second without what a first call makes
        compared(case, variants, 1, device)
    return compared(case, variants, rounds, device)


@program
def main(argv: Sequence[str] | None) -> int:
    """Measure all networks; the status is 1 if results are far from float64."""
    given = parser(__doc__).parse_args(argv)

    def rows() -> Iterator[Row]:
        for text, batch, steps in TINY if given.quick else CASES:
            yield unrolled(text, batch, steps, given.device, 1 if given.quick else ROUNDS)
            yield gradient(
                text,
                4 if given.quick else GRADIENT_BATCH,
                given.device,
                1 if given.quick else GRADIENT_ROUNDS,
            )

    return report(rows(), given)


if __name__ == "__main__":
    sys.exit(main())
