"""The CPU kernels as compiled for each instruction set, in float32, against float64."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# Prints the relative error of gradient and Hessian-vector product in float32, and of DSA.
ERRORS = """
import torch
from trajmatch import networks, ops, reference

torch.manual_seed(0)
for channels, width, size in ((3, 20, 9), (1, 33, 28), (5, 16, 8), (3, 40, 32)):
    model = networks.ConvNet(channels, 4, size, width, 2, activation="sigmoid")
    theta = networks.flat_parameters(model)
    images, labels = torch.randn(5, channels, size, size), torch.arange(5) % 4
    tangent = torch.randn_like(theta)
    ours = [ops.gradient(model, theta, images, labels)[1]]
    ours += ops.gradient_jvp(model, theta, images, labels, tangent)[1:3]
    exact = (theta.double(), images.double(), labels)
    model.double()
    wanted = [reference.gradient(model, *exact)[1].detach()]
    wanted += reference.gradient_jvp(model, *exact, tangent.double())[1:3]
    for got, right in zip(ours, wanted, strict=True):
        print(((got.double() - right).norm() / right.norm()).item())

rows = torch.cat([
    ops.dsa_parameters.color(*torch.rand(3, 2)),
    ops.dsa_parameters.flip(torch.ones(1)),
    ops.dsa_parameters.scale(torch.tensor([1.2]), torch.tensor([0.9])),
    ops.dsa_parameters.rotate(torch.tensor([0.2, -0.1])),
])
for images in (torch.randn(6, 3, 32, 32), torch.randn(6, 19, 17, 5).transpose(1, 3)):
    images.requires_grad_()
    ours = [ops.dsa(images, rows)]
    ours += torch.autograd.grad(ours[0].square().sum(), images)
    exact = images.detach().double().requires_grad_()
    wanted = [reference.dsa(exact, rows)]
    wanted += torch.autograd.grad(wanted[0].square().sum(), exact)
    for got, right in zip(ours, wanted, strict=True):
        print(((got.double() - right).norm() / right.norm()).item())
"""


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_float32_is_close_to_float64(isa: str) -> None:
    # A processor without the set runs the best one that it has.
    result = subprocess.run(
        [sys.executable, "-c", ERRORS],
        env={**os.environ, "TRAJMATCH_ISA": isa},
        capture_output=True,
        text=True,
        check=True,
    )
    errors = [float(line) for line in result.stdout.split()]
    assert len(errors) == 16
    assert max(errors) < 1e-5
