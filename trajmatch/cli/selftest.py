"""Self-test of the installed operators.

Each case runs with :mod:`trajmatch.ops` and with :mod:`trajmatch.reference`, in float64, where
correct implementations agree up to rounding.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trajmatch import networks, ops, random, reference
from trajmatch.ops import dsa_parameters
from trajmatch.recording import relative_error

TOLERANCE = 1e-9  # relative; the cases are small enough for rounding to stay far below it


class Case(NamedTuple):
    """A call to compare between the operators and the reference."""

    shapes: list[tuple[int, ...]]  # of the random tensors to call it with
    # Function of a module of operators and of the tensors that returns one or several tensors.
    # None: the operator that has the name of the case.
    call: Callable[..., Any] | None = None
    orders: int = 1  # number of times that the result is differentiated in all tensors


def run_cases(devices: list[str]) -> list[dict[str, Any]]:
    """Run all cases on all devices, and the reference on the CPU; takes a few seconds.

    Each outcome has ``case``, ``device``, ``error`` (the largest relative difference of a result,
    ``|a - b| / |b|``), ``seconds`` and ``passed`` (False if the error is NaN).
    """
    outcomes = []
    for name, case in CASES.items():
        expected = _results(name, case, reference, "cpu")
        for device in devices:
            started = time.perf_counter()
            results = _results(name, case, ops, device)
            seconds = time.perf_counter() - started
            outcome: dict[str, Any] = {"case": name, "device": device, "seconds": seconds}
            error = relative_error(results, expected)
            outcomes.append(outcome | {"error": error, "passed": error <= TOLERANCE})
    return outcomes


def _dsa(operators: Any, images: Tensor) -> Any:
    """Apply every kind of augmentation, each to one image."""
    one = torch.ones(1)
    rows = [
        dsa_parameters.color(one / 4, one / 2, 2 * one),
        dsa_parameters.crop(one, -2 * one),
        dsa_parameters.cutout(-one, 3 * one, 5, 4),
        dsa_parameters.flip(one),
        dsa_parameters.scale(0.9 * one, 1.1 * one),
        dsa_parameters.rotate(one / 5),
    ]
    return operators.dsa(images, torch.cat(rows).to(images.device))


def _student() -> torch.nn.Module:
    """Return a ConvNet of 1005 parameters."""
    return networks.ConvNet(3, num_classes=5, image_size=8, width=8, depth=2)


def _unroll(operators: Any, theta: Tensor, images: Tensor, labels: Tensor, lr: Tensor) -> Any:
    """Run four student steps with momentum."""
    batches = torch.tensor([[0, 1, 2], [3, 4, 5], [2, 0, 4], [1, 1, 3]], device=theta.device)
    # A random number can be negative or too large for a step size.
    lr = lr.abs() / 10
    return operators.unroll(_student(), theta, images, labels, lr, batches, momentum=0.9)


# Shapes: a vector; parameters [P], images [B, C, H, W] and labels [B, K] for _student.
_VECTOR, _BATCH = (1000,), [(1005,), (6, 3, 8, 8), (6, 5)]

CASES = {
    "param_distance": Case([_VECTOR] * 3),
    "sgd_step": Case([_VECTOR, _VECTOR, (), _VECTOR], lambda of, *given: of.sgd_step(*given, 0.9)),
    "norm_act_pool": Case([(3, 4, 7, 6), (4,), (4,)], orders=2),
    "dsa": Case([(6, 3, 9, 8)], _dsa),
    "soft_cross_entropy": Case([(5, 10)] * 2, orders=2),
    "gradient": Case(_BATCH, lambda of, *given: of.gradient(_student(), *given)),
    "gradient_jvp": Case(
        [*_BATCH, (1005,)], lambda of, *given: of.gradient_jvp(_student(), *given), 0
    ),
    "unroll": Case([*_BATCH, ()], _unroll),
}


def _results(name: str, case: Case, operators: Any, device: str) -> list[Tensor]:
    """Return the outputs of a case and their derivatives, in float64."""
    # Draw on the CPU, because the generators of other devices draw other numbers.
    generator = random.generator(0, "selftest")
    drawn = [torch.randn(each, generator=generator, dtype=torch.float64) for each in case.shapes]
    inputs = [each.to(device).requires_grad_() for each in drawn]
    call = partial(case.call, operators) if case.call else getattr(operators, name)
    found = call(*inputs)
    results = last = list(found) if isinstance(found, tuple) else [found]
    for order in range(case.orders):
        # Differentiate a scalar to which every element contributes differently.
        total = torch.stack([torch.sin(each).square().sum() for each in last]).sum()
        last = list(torch.autograd.grad(total, inputs, create_graph=order + 1 < case.orders))
        results = [*results, *last]
    return [each.detach().cpu() for each in results]
