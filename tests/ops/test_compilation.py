"""Every operator with its derivative as one graph of ``torch.compile``, without Python between."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from trajmatch import networks, ops
from trajmatch.networks import ConvNet

MODEL = ConvNet(3, 4, 8, 4, 1)


def dsa(images: Tensor) -> Tensor:
    angles = torch.linspace(-0.2, 0.2, len(images)).to(images.device)
    return ops.dsa(images, ops.dsa_parameters.rotate(angles))


def sgd_steps(theta: Tensor, grad: Tensor) -> Tensor:
    theta, buffer = ops.sgd_step(theta, grad, 0.1, momentum=0.9)
    return ops.sgd_step(theta, grad, 0.1, buffer, 0.9)[0]


def gradient_steps(theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    for _ in range(2):
        _, grad = ops.gradient(MODEL, theta, images, labels)
        theta, _ = ops.sgd_step(theta, grad, 0.1)
    return theta


def matching_loss(theta: Tensor, images: Tensor, labels: Tensor, lr: Tensor) -> Tensor:
    batches = torch.tensor([[0, 1], [2, 3]], device=theta.device)
    end = ops.unroll(MODEL, theta, images, labels, lr, batches, momentum=0.5)
    return ops.param_distance(end, theta.detach() + 1, theta)


def windows(theta: Tensor, images: Tensor, labels: Tensor, lr: Tensor) -> Tensor:
    batches, adam = torch.tensor([[0, 1], [2, 3]], device=theta.device), ops.Adam(eps=0.1)
    given, state = (images, labels, lr.abs(), batches), None
    for _ in range(2):
        theta, state = ops.unroll(
            MODEL, theta, *given, optimiser=adam, state=state, return_state=True
        )
    return theta


BATCH = [(networks.num_parameters(MODEL),), (6, 3, 8, 8), (6, 4)]


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (ops.param_distance, [(9,), (9,), (9,)]),
        (ops.norm_act_pool, [(2, 4, 6, 6), (4,), (4,)]),
        (ops.soft_cross_entropy, [(4, 3), (4, 3)]),
        (dsa, [(6, 3, 6, 6)]),
        (sgd_steps, [(9,), (9,)]),
        (gradient_steps, BATCH),
        (matching_loss, [*BATCH, ()]),
        (windows, [*BATCH, (2,)]),
    ],
)
def test_compiles_as_one_graph(
    randn: Callable[..., Tensor], function: Callable[..., Tensor], shapes: list[tuple[int, ...]]
) -> None:
    inputs = [randn(*shape, grad=True) for shape in shapes]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(*inputs).square().sum(), inputs)
    wanted = torch.autograd.grad(function(*inputs).square().sum(), inputs)
    torch.testing.assert_close(got, wanted)
