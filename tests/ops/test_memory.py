"""Peak memory of outer iterations, and memory that is given back, in processes of their own."""

from __future__ import annotations

import subprocess
import sys

# Prints bytes of a parameter vector, and of the peak after a short and after a long iteration.
OUTER_ITERATIONS = """
import resource
import torch
from trajmatch import networks, ops

model = networks.ConvNet(3, 10, 16, width=128)
theta = networks.flat_parameters(model)
images = torch.randn(4, 3, 16, 16, requires_grad=True)
lr = torch.tensor(0.01, requires_grad=True)
labels = torch.arange(4)

def outer_iteration(steps):
    batches = torch.arange(4).repeat(steps, 1)
    end = ops.unroll(model, theta, images, labels, lr, batches)
    ops.param_distance(end, theta + 1, theta).backward()

def peak(steps):
    outer_iteration(steps)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

peak(2)
print(theta.numel() * 4, peak(10), peak(80))
"""


def test_a_step_costs_one_parameter_vector() -> None:
    command = [sys.executable, "-c", OUTER_ITERATIONS]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    vector, short, long = (int(number) for number in result.stdout.split())
    assert long <= 1.05 * short + 70 * 1.2 * vector
    # The interpreter itself must not hide the activations of 70 steps (9 MB each here).
    assert long - short <= 70 * 1.2 * vector + 50e6


# Prints what is resident before the engine ran, after, and after the workspace was given back.
RELEASE = """
import torch
from trajmatch import networks, ops

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096

model = networks.ConvNet(3, 10, 32, width=64)
theta = networks.flat_parameters(model)
images, labels = torch.randn(64, 3, 32, 32), torch.arange(64) % 10
ops.gradient(model, theta, images[:1], labels[:1])
before = resident()
ops.gradient(model, theta, images, labels)
kept = resident()
ops.release_workspace()
print(before, kept, resident())
"""


def test_the_workspace_can_be_given_back() -> None:
    command = [sys.executable, "-c", RELEASE]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    before, kept, after = (int(number) for number in result.stdout.split())
    planes = 8 * 64 * 32 * 32 * 4  # the first block's, of the images that one thread has in work
    assert kept - before > planes
    assert after - before < planes
