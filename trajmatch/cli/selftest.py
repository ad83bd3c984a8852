"""A short test that the operators of this installation compute what they should.

Each case runs once with :mod:`trajmatch.ops` and once with :mod:`trajmatch.reference`, in float64,
where two correct implementations agree to rounding.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trajmatch import networks, ops, random, reference
from trajmatch.ops import dsa_parameters

TOLERANCE = 1e-9  # relative; the cases are small enough for rounding to stay far below it

Operators = Any  # trajmatch.ops or trajmatch.reference: they have the same functions
Case = Callable[[Operators, torch.device], "list[Tensor]"]


@dataclass(frozen=True)
class Outcome:
    """What one case gave on one device."""

    case: str
    device: str
    error: float  # largest relative difference of a result, |a - b| / |b|
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether the results agree; not a number does not."""
        return self.error <= TOLERANCE


def run_cases(devices: list[str]) -> list[Outcome]:
    """Runs all cases on all devices; takes a few seconds.

    Args:
        devices: Where the operators run. The reference always runs on the CPU.

    Returns:
        One outcome for every case and device.
    """
    outcomes = []
    for case in CASES:
        expected = case(reference, torch.device("cpu"))
        for device in devices:
            started = time.perf_counter()
            results = case(ops, torch.device(device))
            seconds = time.perf_counter() - started
            error = _worst(results, expected)
            outcomes.append(Outcome(case.__name__, device, error, seconds))
    return outcomes


def param_distance(operators: Operators, device: torch.device) -> list[Tensor]:
    """Loss and gradient."""
    student, target, start = _draw("param_distance", device, (1000,), (1000,), (1000,))
    loss = operators.param_distance(student, target, start)
    return [loss, *torch.autograd.grad(loss, student)]


def sgd_step(operators: Operators, device: torch.device) -> list[Tensor]:
    """A step with momentum, and its adjoint."""
    theta, grad, buffer, lr = inputs = _draw("sgd_step", device, (1000,), (1000,), (1000,), ())
    results = operators.sgd_step(theta, grad, lr, buffer, 0.9)
    return [*results, *torch.autograd.grad(_mix(results), inputs)]


def norm_act_pool(operators: Operators, device: torch.device) -> list[Tensor]:
    """Output, gradient, and gradient of the gradient."""
    inputs = _draw("norm_act_pool", device, (3, 4, 7, 6), (4,), (4,))
    output = operators.norm_act_pool(*inputs)
    return [output, *_twice_differentiated(output, inputs)]


def dsa(operators: Operators, device: torch.device) -> list[Tensor]:
    """Images of every kind of augmentation, and their gradient."""
    (images,) = _draw("dsa", device, (6, 3, 9, 8))
    one = torch.ones(1)
    rows = torch.cat(
        [
            dsa_parameters.color(one / 4, one / 2, 2 * one),
            dsa_parameters.crop(one, -2 * one),
            dsa_parameters.cutout(-one, 3 * one, 5, 4),
            dsa_parameters.flip(one),
            dsa_parameters.scale(0.9 * one, 1.1 * one),
            dsa_parameters.rotate(one / 5),
        ]
    )
    output = operators.dsa(images, rows.to(device))
    return [output, *torch.autograd.grad(_mix([output]), images)]


def soft_cross_entropy(operators: Operators, device: torch.device) -> list[Tensor]:
    """Loss, gradient, and gradient of the gradient, for target logits."""
    inputs = _draw("soft_cross_entropy", device, (5, 10), (5, 10))
    loss = operators.soft_cross_entropy(*inputs)
    return [loss, *_twice_differentiated(loss, inputs)]


def gradient(operators: Operators, device: torch.device) -> list[Tensor]:
    """Loss and parameter gradient of a ConvNet."""
    model, theta = _network(device)
    images, labels = _draw("gradient", device, (6, 3, 8, 8), (6, 5))
    return list(operators.gradient(model, theta, images.detach(), labels.detach()))


def gradient_jvp(operators: Operators, device: torch.device) -> list[Tensor]:
    """Derivative of all gradients along a change of the parameters."""
    model, theta = _network(device)
    images, labels, tangent = _draw(
        "gradient_jvp", device, (6, 3, 8, 8), (6, 5), tuple(theta.shape)
    )
    inputs = (theta, images.detach(), labels.detach())
    return list(operators.gradient_jvp(model, *inputs, tangent=tangent.detach()))


def unroll(operators: Operators, device: torch.device) -> list[Tensor]:
    """Four student steps with momentum, and their gradient in everything."""
    model, theta = _network(device)
    images, labels, lr = _draw("unroll", device, (6, 3, 8, 8), (6, 5), ())
    step_size = lr.abs() / 10
    batches = torch.tensor([[0, 1, 2], [3, 4, 5], [2, 0, 4], [1, 1, 3]], device=device)
    theta.requires_grad_()
    final = operators.unroll(model, theta, images, labels, step_size, batches, momentum=0.9)
    return [final, *torch.autograd.grad(_mix([final]), (images, labels, lr, theta))]


CASES: list[Case] = [
    param_distance,
    sgd_step,
    norm_act_pool,
    dsa,
    soft_cross_entropy,
    gradient,
    gradient_jvp,
    unroll,
]


def _draw(name: str, device: torch.device, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Normally distributed float64 tensors, the same on every device."""
    generator = random.generator(0, "selftest", name)
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [tensor.to(device).requires_grad_() for tensor in tensors]


def _network(device: torch.device) -> tuple[torch.nn.Module, Tensor]:
    model = networks.ConvNet(3, num_classes=5, image_size=8, width=8, depth=2)
    networks.initialise(model, random.generator(0, "selftest", "network"))
    model = model.to(device, torch.float64)
    return model, networks.flat_parameters(model)


def _mix(tensors: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """A scalar to which every element contributes differently."""
    return torch.stack([torch.sin(tensor).square().sum() for tensor in tensors]).sum()


def _twice_differentiated(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    first = torch.autograd.grad(_mix([output]), inputs, create_graph=True)
    return [*first, *torch.autograd.grad(_mix(first), inputs)]


def _worst(results: list[Tensor], expected: list[Tensor]) -> float:
    """The largest relative difference; NaN when one is NaN."""
    errors = [
        (result.detach().cpu() - other.detach()).norm() / other.detach().norm()
        for result, other in zip(results, expected, strict=True)
    ]
    return float(torch.stack(errors).max())
