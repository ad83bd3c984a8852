"""Steps of the papers' other sequential networks on the engine, beside the same on autograd.

    pytest benchmarks/bench_networks.py --benchmark-columns=min,median

An unroll with its adjoint, and a gradient alone, which is most of an expert's step. The autograd
that it is compared with is our own adjoint over PyTorch's graph of one step, which runs what the
engine does not know: PyTorch's graph of all steps would be slower, and take more memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch
from bench.agreement import relative
from bench.timing import alternate
from torch import Tensor, nn

from trajmatch import networks, ops

#: Name, images in a batch, student steps.
CASES = [
    ("mlp", 50, 20),
    ("lenet", 50, 20),
    ("alexnet:width=32", 50, 5),
    ("vgg11:width=16", 50, 5),
    ("alexnet", 50, 3),
    ("vgg11", 50, 3),
]
TINY = [("mlp:width=4", 4, 2), ("alexnet:width=4", 4, 2)]
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


@cache
def measured(text: str, batch: int, steps: int, device: str, rounds: int) -> dict[str, Any]:
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
        "trajmatch_no_tape": partial(gradients, model, 0),
        "autograd": partial(gradients, other, 0),
    }
    exact = gradients(other.double(), 0, 1, torch.float64)
    other.float()
    differences = {name: max(map(relative, run(steps=1), exact)) for name, run in variants.items()}
    for run in variants.values():
        run()
    taken = alternate(variants, rounds, device)
    return {"seconds": taken, "differences": differences, "steps": steps}


@cache
def measured_gradient(text: str, batch: int, device: str, rounds: int) -> dict[str, list[float]]:
    spec = networks.specify(text, 3, 10, 32)
    model, other = (networks.build(spec).to(device) for _ in range(2))
    theta = networks.flat_parameters(model).detach()
    images = torch.randn(batch, 3, 32, 32, device=device)
    labels = torch.arange(batch, device=device) % 10
    variants = {
        "trajmatch": partial(ops.gradient, model, theta, images, labels),
        "autograd": partial(ops.gradient, on_autograd(other), theta, images, labels),
    }
    for _ in range(2):  # the second without what a first call makes
        alternate(variants, 1, device)
    return alternate(variants, rounds, device)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    tiny = metafunc.config.getoption("benchmark_disable")
    metafunc.parametrize("case", TINY if tiny else CASES, ids=lambda case: case[0])


@pytest.mark.parametrize("variant", ["trajmatch", "trajmatch_no_tape", "autograd"])
def bench_network(
    replay: Callable[..., None], device: str, tiny: bool, case: tuple[str, int, int], variant: str
) -> None:
    record = measured(*case, device, 1 if tiny else ROUNDS)
    assert record["differences"][variant] < TOLERANCE, record["differences"]
    replay(
        record["seconds"][variant],
        f"unroll and adjoint, {device}, {case[0]}, batch {case[1]}, N = {case[2]}",
        differences=record["differences"],
    )


@pytest.mark.parametrize("variant", ["trajmatch", "autograd"])
def bench_gradient(
    replay: Callable[..., None], device: str, tiny: bool, case: tuple[str, int, int], variant: str
) -> None:
    text, batch = case[0], 4 if tiny else GRADIENT_BATCH
    taken = measured_gradient(text, batch, device, 1 if tiny else GRADIENT_ROUNDS)
    replay(taken[variant], f"gradient, {device}, {text}, batch {batch}")
