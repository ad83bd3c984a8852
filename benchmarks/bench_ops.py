"""Each fused operator with its derivatives, beside eager and compiled PyTorch.

    python benchmarks/bench_ops.py --out record.json

The three compute the same and are timed in alternating rounds. The compiled one is the reference's
formula with its derivatives by ``torch.func``, since a second derivative through autograd does not
compile.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import bench  # noqa: F401  before torch, which reads its settings of OpenMP
import torch
from bench.agreement import relative
from bench.program import Row, compared, parser, program, report
from bench.timing import seconds
from bench.variants import adjoint_step, quiet, student_step
from torch import Tensor
from torch.func import vjp

from trajmatch import networks, ops, reference
from trajmatch.data import DSA

#: Calls are repeated until a round takes this long.
ROUND_SECONDS = 0.01
ROUNDS = 20
#: Largest relative difference of a result; an input of a ReLU may fall on the other side of zero.
TOLERANCE = 1e-2

Call = Callable[[], Sequence[Tensor]]


class Case(NamedTuple):
    """One operator at one size."""

    trajmatch: Call
    eager: Call
    formula: Callable[..., Any] | None  # what is compiled; None: it branches on values
    arguments: tuple[Any, ...]


def differentiated(name: str, inputs: Sequence[Tensor], order: int = 1, **choices: Any) -> Case:
    """An operator that exists in ``ops`` and ``reference``, differentiated once or twice."""
    leaves = [each.detach().requires_grad_() for each in inputs]

    def on_autograd(functions: ModuleType) -> Sequence[Tensor]:
        outputs = flat(getattr(functions, name)(*leaves, **choices))
        above = [torch.ones_like(each) for each in outputs]
        grads = torch.autograd.grad(outputs, leaves, above, create_graph=order == 2)
        if order == 1:
            return grads
        return torch.autograd.grad(grads, leaves, [each.detach() for each in grads])

    def gradients(*inputs: Tensor) -> tuple[Tensor, ...]:
        outputs, pull = vjp(partial(getattr(reference, name), **choices), *inputs)
        above = [torch.ones_like(each) for each in flat(outputs)]
        grads: tuple[Tensor, ...] = pull(above[0] if isinstance(outputs, Tensor) else tuple(above))
        return grads

    def twice(*inputs: Tensor) -> tuple[Tensor, ...]:
        grads, pull = vjp(gradients, *inputs)
        second: tuple[Tensor, ...] = pull(tuple(each.detach() for each in grads))
        return second

    return Case(
        partial(on_autograd, ops),
        partial(on_autograd, reference),
        gradients if order == 1 else twice,
        tuple(inputs),
    )


def flat(outputs: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else outputs


def param_distance(device: str, tiny: bool) -> Case:
    return differentiated("param_distance", vectors(device, tiny))


def sgd_step(device: str, tiny: bool) -> Case:
    theta, gradient, buffer = vectors(device, tiny)
    lr = torch.tensor(0.01, device=device)
    return differentiated("sgd_step", [theta, gradient, lr, buffer], momentum=0.9)


def soft_cross_entropy(device: str, tiny: bool) -> Case:
    sizes = (4, 3) if tiny else (100, 100)
    return differentiated(
        "soft_cross_entropy", [torch.randn(sizes, device=device) for _ in range(2)]
    )


def norm_act_pool(device: str, tiny: bool, pooling: str, order: int) -> Case:
    batch, width, side = (2, 4, 8) if tiny else (50, 32, 32)
    x = torch.randn(batch, width, side, side, device=device)
    inputs = [x, torch.ones(width, device=device), torch.zeros(width, device=device)]
    return differentiated("norm_act_pool", inputs, order, pooling=pooling)


def dsa(device: str, tiny: bool, group: str) -> Case:
    batch, side = (2, 8) if tiny else (50, 32)
    rows = DSA(group).draw(batch, side, side, torch.Generator().manual_seed(0)).rows.to(device)
    images = torch.randn(batch, 3, side, side, device=device)
    return differentiated("dsa", [images], parameters=rows)._replace(formula=None)


def gradient(device: str, tiny: bool) -> Case:
    model, theta, images, labels = student(device, tiny)
    lr = torch.ones((), device=device)

    def fused() -> Sequence[Tensor]:
        return [theta - ops.gradient(model, theta, images, labels)[1]]

    def eager() -> Sequence[Tensor]:
        leaf = theta.detach().requires_grad_()
        value = reference.loss_value(model, leaf, images, labels, "cross_entropy")
        return [theta - torch.autograd.grad(value, leaf)[0]]

    return Case(fused, eager, student_step, (model, theta, images, labels, lr))


def gradient_jvp(device: str, tiny: bool) -> Case:
    model, theta, images, labels = student(device, tiny)
    tangent, lr = torch.randn_like(theta), torch.ones((), device=device)

    def on(functions: ModuleType) -> Sequence[Tensor]:
        result = functions.gradient_jvp(model, theta, images, labels, -tangent)
        return [result.directional, result.grad_images, tangent + result.grad_theta]

    return Case(
        partial(on, ops),
        partial(on, reference),
        adjoint_step,
        (model, theta, images, labels, lr, tangent),
    )


def vectors(device: str, tiny: bool) -> list[Tensor]:
    """Three vectors of the length of the CIFAR-10 ConvNet's parameters at width 128."""
    return [torch.randn(10 if tiny else 320_010, device=device) for _ in range(3)]


def student(device: str, tiny: bool) -> tuple[networks.ConvNet, Tensor, Tensor, Tensor]:
    width, batch, side, depth = (4, 2, 8, 1) if tiny else (32, 50, 32, 3)
    model = networks.ConvNet(3, 10, side, width=width, depth=depth).to(device)
    images = torch.randn(batch, 3, side, side, device=device)
    theta = networks.flat_parameters(model)
    return model, theta, images, torch.arange(batch, device=device) % 10


CASES: dict[str, Callable[[str, bool], Case]] = {
    "param_distance": param_distance,
    "sgd_step": sgd_step,
    "soft_cross_entropy": soft_cross_entropy,
    **{
        f"norm_act_pool, {pooling}, derivative {order}": partial(
            norm_act_pool, pooling=pooling, order=order
        )
        for pooling in ("average", "max")
        for order in (1, 2)
    },
    **{f"dsa, {group}": partial(dsa, group=group) for group in ("color", "crop", "rotate")},
    "gradient": gradient,
    "gradient_jvp": gradient_jvp,
}


def measured(name: str, device: str, tiny: bool) -> Row:
    """Compare the implementations of a case and time them."""
    torch.manual_seed(0)
    torch.compiler.reset()
    case = CASES[name](device, tiny)
    calls: dict[str, Call] = {"trajmatch": case.trajmatch, "eager": case.eager}
    if case.formula is not None:
        compiled = torch.compile(
            case.formula, fullgraph=True, dynamic=False, backend="eager" if tiny else "inductor"
        )
        calls["compiled"] = lambda: flat(compiled(*case.arguments))
    with quiet():
        # all results of a call as one vector: some second derivatives are zero
        results = {key: torch.cat([x.flatten() for x in call()]) for key, call in calls.items()}
    differences = {key: relative(found, results["eager"]) for key, found in results.items()}
    once = min(seconds(call, device) for call in calls.values())
    repeats = 1 if tiny else max(1, round(ROUND_SECONDS / once))

    def repeated(call: Call) -> None:
        for _ in range(repeats):
            call()

    return compared(
        name,
        {key: partial(repeated, call) for key, call in calls.items()},
        1 if tiny else ROUNDS,
        device,
        repeats,
        differences=differences,
        agree=max(differences.values()) <= TOLERANCE,
    )


@program
def main(argv: Sequence[str] | None) -> int:
    """Measure all operators; the status is 1 if implementations differ."""
    given = parser(__doc__).parse_args(argv)
    return report((measured(name, given.device, given.quick) for name in CASES), given)


if __name__ == "__main__":
    sys.exit(main())
