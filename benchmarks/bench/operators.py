"""Cases of the operators with their derivatives, for comparisons and timings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vjp

from bench.variants import adjoint_step, student_step
from trajmatch import networks, random, reference
from trajmatch.data import DSA
from trajmatch.protocol import MTT_DSA

Operators = Any  # trajmatch.ops or trajmatch.reference: they have the same functions
Call = Callable[[], Sequence[Tensor]]


@dataclass(frozen=True)
class Case:
    """An operator with inputs.

    Attributes:
        name: Its name, with what is special.
        inputs: float64, on the CPU, with values that float32 has.
        function: Outputs of ``(operators, model, *inputs)``.
        order: Number of times that the outputs are differentiated in all inputs.
        model: The network, where there is one.
        formula: The last outputs in terms of ``(model, *inputs)``, for the compiler, where that is
            not the reference under ``torch.func``.
    """

    name: str
    inputs: list[Tensor]
    function: Callable[..., Tensor | Sequence[Tensor]]
    order: int = 1
    model: nn.Module = field(default_factory=nn.Module)
    formula: Callable[..., Sequence[Tensor]] | None = None

    def on(self, operators: Operators, device: str, dtype: torch.dtype) -> Call:
        """Return a function that gives outputs, derivatives, and derivatives of those."""
        model, leaves = self._moved(device, dtype)
        if not self.order:
            return lambda: _flat(self.function(operators, model, *leaves))
        above = [_weights(each) for each in _flat(self.function(operators, model, *leaves))]
        leaves = [each.requires_grad_() for each in leaves]

        def call() -> list[Tensor]:
            outputs = _flat(self.function(operators, model, *leaves))
            first = torch.autograd.grad(outputs, leaves, above, create_graph=self.order == 2)
            if self.order == 1:
                return [*outputs, *first]
            below = [each.detach() for each in first]
            second = torch.autograd.grad(first, leaves, below, materialize_grads=True)
            return [*outputs, *first, *second]

        return call

    def compiled(self, device: str, backend: str) -> Call:
        """Return a function that gives the last of these results, compiled, in float32."""
        model, leaves = self._moved(device, torch.float32)
        formula = self.formula and partial(self.formula, model)
        if formula is None:

            def values(*inputs: Tensor) -> tuple[Tensor, ...]:
                return tuple(_flat(self.function(reference, model, *inputs)))

            above = tuple(map(_weights, values(*leaves)))

            def first(*inputs: Tensor) -> tuple[Tensor, ...]:
                return vjp(values, *inputs)[1](above)

            def second(*inputs: Tensor) -> tuple[Tensor, ...]:
                grads, pull = vjp(first, *inputs)
                return pull(tuple(each.detach() for each in grads))

            formula = first if self.order == 1 else second
        run = torch.compile(formula, fullgraph=True, dynamic=False, backend=backend)
        return lambda: _flat(run(*leaves))

    def _moved(self, device: str, dtype: torch.dtype) -> tuple[nn.Module, list[Tensor]]:
        moved = [each.to(device, dtype).detach().clone() for each in self.inputs]
        return self.model.to(device, dtype), moved


def cases(quick: bool, sizes: Sequence[tuple[int, int, int, int]]) -> Iterator[Case]:
    """Yield all cases.

    Args:
        quick: True for the smallest sizes, which fill no vector.
        sizes: Width, depth, image size and batch of the networks.
    """
    count = 1000 if quick else 320_010  # parameters of the CIFAR-10 ConvNet at width 128
    vectors = draw("vectors", (count,), (count,), (count,), ())
    yield Case("param_distance", vectors[:3], lambda on, _, *inputs: on.param_distance(*inputs))
    yield Case("sgd_step", vectors, lambda on, _, a, b, c, lr: on.sgd_step(a, b, lr, c, 0.9))
    logits = draw("logits", *[(4, 3) if quick else (100, 100)] * 2)
    for order in (1, 2):
        yield Case(f"soft_cross_entropy, derivative {order}", logits, _loss, order)
    classes = logits[1].argmax(dim=1)
    yield Case(
        "cross_entropy",
        logits[:1],
        lambda on, _, x: on.soft_cross_entropy(x, classes.to(x.device)),
    )
    batch, width, height, breadth = maps = (2, 5, 7, 6) if quick else (50, 32, 32, 32)
    for pooling in ("average", "max"):
        for order in (1, 2):
            inputs = draw("maps", maps, (width,), (width,))
            name = f"norm_act_pool, {pooling}, derivative {order}"
            yield Case(name, inputs, partial(_norm_act_pool, pooling), order)
    for group in MTT_DSA.split("_"):
        shape = (batch, 3, height, breadth)
        rows = DSA(group).draw(batch, height, breadth, random.generator(0, "bench", group))
        augment = partial(_dsa, rows)
        yield Case(f"dsa, {group}", draw("images", shape), augment)
    for width, depth, side, batch in sizes:
        model = networks.ConvNet(3, 10, side, width=width, depth=depth)
        networks.initialise(model, random.generator(0, "bench", "network"))
        theta = networks.flat_parameters(model).detach().double()
        inputs = draw("network", (batch, 3, side, side), (batch, 10), tuple(theta.shape), ())
        images, labels, tangent, lr = inputs
        student = [theta, images, labels]
        about = f"width {width}, batch {batch}"
        yield Case(f"gradient, {about}", student, _gradient, 0, model, _gradient_formula)
        yield Case(
            f"gradient_jvp, {about}", [*student, tangent], _gradient_jvp, 0, model, _jvp_formula
        )
        yield Case(f"unroll, {about}", [*student, lr.abs() / 10], _unroll, 1, model)


def draw(name: str, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Draw normal random numbers that float32 has, in float64."""
    generator = random.generator(0, "bench", name)
    return [torch.randn(shape, generator=generator).double() for shape in shapes]


def _loss(on: Operators, _: nn.Module, logits: Tensor, targets: Tensor) -> Tensor:
    return on.soft_cross_entropy(logits, targets)


def _norm_act_pool(pooling: str, on: Operators, _: nn.Module, *inputs: Tensor) -> Tensor:
    return on.norm_act_pool(*inputs, pooling=pooling)


def _dsa(rows: Tensor, on: Operators, _: nn.Module, images: Tensor) -> Tensor:
    return on.dsa(images, rows.to(images.device))


def _gradient(on: Operators, model: nn.Module, *inputs: Tensor) -> Sequence[Tensor]:
    return on.gradient(model, *inputs)


def _gradient_formula(model: nn.Module, theta: Tensor, *batch: Tensor) -> Sequence[Tensor]:
    return [theta - student_step(model, theta, *batch, torch.ones_like(theta[0]))]


def _gradient_jvp(
    on: Operators, model: nn.Module, theta: Tensor, images: Tensor, labels: Tensor, tangent: Tensor
) -> Sequence[Tensor]:
    found = on.gradient_jvp(model, theta, images, labels, -tangent)
    return [found.directional, found.grad_images, tangent + found.grad_theta]


def _jvp_formula(model: nn.Module, *inputs: Tensor) -> Sequence[Tensor]:
    *batch, tangent = inputs
    return adjoint_step(model, *batch, torch.ones_like(tangent[0]), tangent)


def _unroll(on: Operators, model: nn.Module, *inputs: Tensor) -> Tensor:
    batches = torch.arange(len(inputs[1]), device=inputs[1].device).repeat(3, 1)
    return on.unroll(model, *inputs, batches, momentum=0.9)


def _flat(outputs: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else outputs


def _weights(output: Tensor) -> Tensor:
    """Return a factor of each element, other than that of the next."""
    count = output.numel()
    return torch.linspace(0.5, 1.5, count).to(output).reshape(output.shape)
