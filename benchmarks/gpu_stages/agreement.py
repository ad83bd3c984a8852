"""Every operator on the device against the CPU build and against float64.

The exact result is that of :mod:`trajmatch.reference` in float64. An error is the largest of
``|result - exact| / |exact|`` over the results of a case; eager PyTorch's own error on the device
stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gpu_stages.settings import Record, Settings
from trajmatch import networks, ops, random, reference
from trajmatch.data import DSA
from trajmatch.protocol import MTT_DSA

Operators = Any  # trajmatch.ops or trajmatch.reference: they have the same functions

FLOAT64_BOUND = 1e-9
#: Of operators that are one pass: what tests of float32 allow, or twice eager PyTorch's error.
FLOAT32_BOUND = 1e-4
#: Of a network in float32. An input of a ReLU near zero falls on the other side in one of two
#: correct computations, which was seen to move a gradient by up to 5e-3; a wrong kernel, by 1.
NETWORK_BOUND = 2e-2
#: The same with TF32 convolutions, whose rounding moves gradients by 3e-2.
TF32_BOUND = 1e-1

#: Width, depth, image size and batch of the networks.
NETWORKS = [(32, 3, 32, 10), (128, 3, 32, 10)]
SMALLEST = [(4, 2, 8, 3)]


@dataclass(frozen=True)
class Case:
    """An operator with inputs.

    Attributes:
        name: What it is.
        inputs: float64, on the CPU, with values that float32 has.
        call: Results of the operator, and of its derivatives.
        model: The network, where there is one.
    """

    name: str
    inputs: list[Tensor]
    call: Callable[[Operators, list[Tensor], nn.Module], list[Tensor]]
    model: nn.Module

    def run(self, operators: Operators, device: str, dtype: torch.dtype) -> list[Tensor]:
        """The results, in float64 on the CPU."""
        model = self.model.to(device, dtype)
        moved = [each.to(device, dtype).requires_grad_() for each in self.inputs]
        return [each.detach().cpu().double() for each in self.call(operators, moved, model)]

    @property
    def bound(self) -> float:
        """The largest error in float32, without TF32."""
        return NETWORK_BOUND if networks.num_parameters(self.model) else FLOAT32_BOUND


def run(settings: Settings, record: Record) -> None:
    """All cases, in float64 and float32; an error beyond its bound is a fault."""
    for case in cases(settings.quick):
        entry = compare(case, settings.device)
        record.put(case.name, entry)
        for name, bound in entry["bounds"].items():
            error = entry["errors"][name]
            if not error <= bound:  # not a number is a fault as well
                record.fault(f"{case.name}, {name}: relative error {error:.1e}, above {bound:.0e}")
        if not entry["equal_bits"] and not networks.num_parameters(case.model):
            record.fault(f"{case.name}: two runs on {settings.device} gave different bits")


def compare(case: Case, device: str) -> dict[str, Any]:
    """Errors of a case.

    Returns:
        ``errors`` by dtype and by what was run, ``bounds`` of those that are judged, and
        ``equal_bits``, whether two float32 runs on the device gave the same. (Gradients of the
        library's convolutions need not.)
    """
    exact = case.run(reference, "cpu", torch.float64)
    with tf32(False):
        float32 = case.run(ops, device, torch.float32)
        again = case.run(ops, device, torch.float32)
        errors = {
            "float64": worst(case.run(ops, device, torch.float64), exact),
            "float32": worst(float32, exact),
            "float32 of the CPU build": worst(case.run(ops, "cpu", torch.float32), exact),
            "float32 of eager PyTorch": worst(case.run(reference, device, torch.float32), exact),
        }
    eager = errors["float32 of eager PyTorch"]
    bounds = {"float64": FLOAT64_BOUND, "float32": max(case.bound, 2 * eager)}
    if device == "cuda" and networks.num_parameters(case.model):
        with tf32(True):
            errors["TF32"] = worst(case.run(ops, device, torch.float32), exact)
            errors["TF32 of eager PyTorch"] = worst(
                case.run(reference, device, torch.float32), exact
            )
        bounds["TF32"] = TF32_BOUND
    equal = all(torch.equal(one, two) for one, two in zip(float32, again, strict=True))
    return {"errors": errors, "bounds": bounds, "equal_bits": equal}


def worst(results: list[Tensor], exact: list[Tensor]) -> float:
    """The largest relative error; not a number where a result is not."""
    errors = [
        (result - wanted).norm() / wanted.norm()
        for result, wanted in zip(results, exact, strict=True)
    ]
    return float(torch.stack(errors).max())


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether convolutions and products on a GPU may round their operands to TF32."""
    backends: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = allowed
    try:
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


def cases(quick: bool) -> Iterator[Case]:
    """All cases; the quick ones are the smallest, with sizes that fill no vector."""
    none = nn.Module()
    size = 1000 if quick else 320_010
    maps = (2, 5, 7, 6) if quick else (16, 32, 16, 16)
    channels = maps[1]
    yield Case("param_distance", draw("param_distance", (size,), (size,), (size,)), distance, none)
    yield Case("sgd_step", draw("sgd_step", (size,), (size,), (size,), ()), step, none)
    yield Case("loss", draw("loss", (50, 10), (50, 10)), loss, none)
    for pooling in ("average", "max"):
        yield Case(
            f"norm_act_pool {pooling}",
            draw("norm_act_pool", maps, (channels,), (channels,)),
            norm_act_pool(pooling),
            none,
        )
    yield Case("dsa", draw("dsa", (12, 3, *(maps[2:] if quick else (32, 32)))), dsa, none)
    for width, depth, image_size, batch in SMALLEST if quick else NETWORKS:
        model = networks.ConvNet(3, 10, image_size, width=width, depth=depth)
        networks.initialise(model, random.generator(0, "gpu_check", "network"))
        theta = networks.flat_parameters(model).double()
        images, tangent = draw("network", (batch, 3, image_size, image_size), tuple(theta.shape))
        labels, lr = draw("labels", (batch, 10), ())
        for name, call in (
            ("gradient", gradient),
            ("gradient_jvp", gradient_jvp),
            ("unroll", unroll),
        ):
            inputs = [theta, images, labels, tangent, lr.abs() / 10]
            yield Case(f"{name} width {width}", inputs, call, model)


def draw(name: str, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Normal random numbers that float32 has, in float64."""
    generator = random.generator(0, "gpu_check", name)
    return [torch.randn(shape, generator=generator).double() for shape in shapes]


def distance(operators: Operators, inputs: list[Tensor], _: nn.Module) -> list[Tensor]:
    value = operators.param_distance(*inputs)
    return [value, *torch.autograd.grad(value, inputs)]


def step(operators: Operators, inputs: list[Tensor], _: nn.Module) -> list[Tensor]:
    theta, grad, buffer, lr = inputs
    results = operators.sgd_step(theta, grad, lr, buffer, 0.9)
    return [*results, *torch.autograd.grad(mix(results), inputs)]


def loss(operators: Operators, inputs: list[Tensor], _: nn.Module) -> list[Tensor]:
    logits, targets = inputs
    hard = operators.soft_cross_entropy(logits, targets.argmax(dim=1))
    return [hard, *twice(operators.soft_cross_entropy(logits, targets), inputs)]


def dsa(operators: Operators, inputs: list[Tensor], _: nn.Module) -> list[Tensor]:
    (images,) = inputs
    height, width = images.shape[2:]
    generator = random.generator(0, "gpu_check", "dsa parameters")
    groups = MTT_DSA.split("_")
    each = len(images) // len(groups)
    rows = [DSA(group).draw(each, height, width, generator).rows for group in groups]
    augmented = operators.dsa(images, torch.cat(rows).to(images.device))
    return [augmented, *torch.autograd.grad(mix([augmented]), inputs)]


def norm_act_pool(pooling: str) -> Callable[[Operators, list[Tensor], nn.Module], list[Tensor]]:
    def call(operators: Operators, inputs: list[Tensor], _: nn.Module) -> list[Tensor]:
        return twice(operators.norm_act_pool(*inputs, pooling=pooling), inputs)

    return call


def gradient(operators: Operators, inputs: list[Tensor], model: nn.Module) -> list[Tensor]:
    theta, images, labels, _, _ = (each.detach() for each in inputs)
    return list(operators.gradient(model, theta, images, labels))


def gradient_jvp(operators: Operators, inputs: list[Tensor], model: nn.Module) -> list[Tensor]:
    theta, images, labels, tangent, _ = (each.detach() for each in inputs)
    return list(operators.gradient_jvp(model, theta, images, labels, tangent))


def unroll(operators: Operators, inputs: list[Tensor], model: nn.Module) -> list[Tensor]:
    theta, images, labels, _, lr = inputs
    batches = torch.arange(len(images), device=images.device).repeat(3, 1)
    final = operators.unroll(model, theta, images, labels, lr, batches, momentum=0.9)
    return [final, *torch.autograd.grad(mix([final]), (theta, images, labels, lr))]


def mix(tensors: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """A scalar to which every element contributes differently."""
    return torch.stack([torch.sin(tensor).square().sum() for tensor in tensors]).sum()


def twice(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """The output, its derivatives, and the derivatives of those."""
    first = torch.autograd.grad(mix([output]), inputs, create_graph=True)
    return [output, *first, *torch.autograd.grad(mix(first), inputs)]
