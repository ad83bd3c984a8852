"""The CUDA path of the operators, host code included, on the CPU emulator (tests/emulator).

An extension module is built of the very sources of csrc/ops and csrc/cuda, with the emulator's
launches, and takes the CUDA path for CPU tensors (``TRAJMATCH_EMULATED`` in csrc/ops/torch_api.h).
The operators' own tests then run on it, in a process of their own, against float64. What it cannot
show: concurrency, CUDA graphs, and what PyTorch's own operators (convolutions of large networks) do
on CUDA. No CPU loop is linked in: a call of one would end the process.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from compiled import CSRC, EMULATOR, ROOT, compiled, together
from torch_release import find_torch

ENGINE = ("student", "unroll", "unroll_networks", "together", "fused_blocks")
OPERATORS = (
    *("norm_act_pool", "param_distance", "sgd_step", "soft_cross_entropy"),
    *("losses", "optimisers"),
)
# Checks of the Python side, which are the same whatever runs below it.
PYTHON_ONLY = ("opcheck", "compiles", "gradcheck", "errors", "other_modules", "outside")

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")


@pytest.fixture(scope="module")
def emulated_module() -> Path:
    """Builds the module: about 35 seconds of one core, nothing where no source changed."""
    torch = find_torch()
    assert torch is not None
    # Quick to compile is what matters; the kernels alone are worth optimising.
    compiler = [
        *("g++", "-std=c++20", "-fPIC", "-fvisibility=hidden"),
        *("-DTRAJMATCH_WITH_CUDA", "-DTRAJMATCH_EMULATED"),
        "-DTORCH_TARGET_VERSION=0x020b000000000000",
        *(f"-I{folder}" for folder in (CSRC, EMULATOR, EMULATOR / "host")),
        *(f"-isystem{path}" for path in (sysconfig.get_path("include"), torch.root / "include")),
    ]
    kernels = [*CSRC.glob("cuda/*.cu"), *EMULATOR.glob("runtime/*.cpp")]
    host = [*CSRC.glob("*.cpp"), *CSRC.glob("ops/*.cpp"), *EMULATOR.glob("host/*.cpp")]
    joined = together("host.cpp", sorted(host))
    return compiled(
        "_C.so",
        [
            ([joined], [*compiler, "-O0"]),
            (sorted(kernels), [*compiler, "-O1", "-x", "c++"]),
        ],
        ["g++", "-shared"],
        *(f"-L{torch.root}/lib", "-ltorch_cpu", "-lc10", "-pthread"),
    )


def environment_of(module: Path) -> dict[str, str]:
    """The environment of a process whose ``import emulated_module`` finds the module."""
    path = os.pathsep.join(filter(None, [str(EMULATOR / "host"), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "TRAJMATCH_EMULATED_MODULE": str(module)}


def run_tests_of(operators: tuple[str, ...], module: Path, order: int, *only: str) -> str:
    """Runs tests/ops/test_<operator>.py on the emulated module; gives what pytest printed.

    ``only``: words that must be in the name of a test.
    """
    selection = " and ".join([*only, *(f"not {word}" for word in ("cuda", *PYTHON_ONLY))])
    result = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "emulated_module"),
            *("-p", "no:cacheprovider", "-k", selection),
            *(str(ROOT / "tests" / "ops" / f"test_{operator}.py") for operator in operators),
        ],
        cwd=ROOT,
        env={**environment_of(module), "TRAJMATCH_EMULATOR_ORDER": str(order)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


#: Prints whether a choice of blocks gives the bits of the library's, and keeps as much.
BLOCKS = """
import emulated_module, sys, torch
from trajmatch import networks, ops, random

blocks, width, depth = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
draw = random.generator(0, "card")
model = networks.initialise(networks.ConvNet(3, 4, 32, width=width, depth=depth), draw)
theta, images = networks.flat_parameters(model), torch.randn(2, 3, 32, 32, generator=draw)

def found(blocks):
    with ops.cuda_blocks(blocks):
        results = ops.gradient_jvp(model, theta, images, torch.tensor([0, 3]), theta.flip(0))
        return ops.tape_bytes(model, [2], device="cuda"), results.grad_theta, results.grad_images

chosen, library = found(blocks), found("library")
print(chosen[0] == library[0], *(torch.equal(*pair) for pair in zip(chosen[1:], library[1:])))
# fp16 rounds operands to 11 bits, which also switches a few ReLUs
limit = 0.05 if blocks == "fp16" else 1e-5
for one, other in zip(chosen[1:], library[1:]):
    assert (one - other).norm() < limit * other.norm()
"""


@pytest.mark.parametrize(
    ("blocks", "width", "depth", "shared_kib", "library"),
    [
        ("first", 16, 1, 64, True),
        ("first", 16, 1, 99, False),
        ("tf32", 128, 2, 64, True),
        ("fp16", 128, 2, 99, False),
    ],
)
def test_a_card_with_little_shared_memory_gets_the_library_s_blocks(
    emulated_module: Path, blocks: str, width: int, depth: int, shared_kib: int, library: bool
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BLOCKS, blocks, str(width), str(depth)],
        env={**environment_of(emulated_module), "TRAJMATCH_EMULATOR_SHARED_KIB": str(shared_kib)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == 3 * [str(library)]


#: Compares with autograd where several blocks share the pixels of an image.
SHARED = """
import emulated_module, torch
from torch.nn.functional import cross_entropy
from trajmatch import networks, ops, random, reference

draw = random.generator(0, "card")
model = networks.ConvNet(3, 4, 32, width=3, depth=1, norm="batch")
theta = networks.flat_parameters(networks.initialise(model, draw)).double().requires_grad_()
images = torch.randn(8, 3, 32, 32, generator=draw, dtype=torch.float64)
labels = torch.arange(8) % 4
assert ops.engine_for(model) == "engine"
loss = cross_entropy(networks.call_flat(model, theta, images), labels)
(wanted,) = torch.autograd.grad(loss, theta, create_graph=True)
along = torch.randn(len(theta), generator=draw, dtype=torch.float64)
(second,) = torch.autograd.grad(wanted @ along, theta)
found = ops.gradient_jvp(model, theta.detach(), images, labels, along)
torch.testing.assert_close(ops.gradient(model, theta.detach(), images, labels)[1], wanted)
torch.testing.assert_close(found.grad_theta, second, rtol=1e-9, atol=1e-11)
_, single = ops.gradient(model, theta.detach().float(), images.float(), labels)
torch.testing.assert_close(single.double(), wanted, rtol=1e-4, atol=1e-5)

x = torch.randn(1, 2, 64, 64, generator=draw, dtype=torch.float64)
choices = {"norm": "instance", "activation": "relu", "pooling": "average"}
exact = reference.norm_act_pool(x, **choices)
torch.testing.assert_close(ops.norm_act_pool(x, **choices), exact)
single = ops.norm_act_pool(x.float(), **choices).double()
torch.testing.assert_close(single, exact, rtol=1e-4, atol=1e-5)
"""


def test_images_that_blocks_share_are_exact(emulated_module: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHARED],
        env=environment_of(emulated_module),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


#: Prints the launches of a step and its adjoint, with augmentation, for one student and for four.
LAUNCHES = """
import ctypes, emulated_module, os, sys, torch
from trajmatch import networks, ops
from trajmatch.data import DSA

count = ctypes.CDLL(os.environ["TRAJMATCH_EMULATED_MODULE"]).emulator_launches
model = networks.ConvNet(3, 4, 32, width=32, depth=3)
theta = networks.flat_parameters(model).requires_grad_()
images, labels = torch.randn(1, 3, 32, 32, requires_grad=True), torch.tensor([3])
call = dict(theta0=theta, images=images, labels=labels, lr=0.1, momentum=0.5)
call["augment"] = DSA().replay(seed=0)

def launches(students, steps):
    before = count()
    ends = ops.unroll_together(model, [{**call, "batches": [[0]] * steps}] * students)
    torch.autograd.grad(torch.stack(ends).sum(), images)
    return count() - before

with ops.cuda_blocks(sys.argv[1]):
    for students in (1, 4):
        print(launches(students, 2) - launches(students, 1))
"""


@pytest.mark.parametrize(("blocks", "most"), [("tf32", 40), ("fp16", 62), ("first", 28)])
def test_students_together_take_the_launches_of_one(
    emulated_module: Path, blocks: str, most: int
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHES, blocks],
        env=environment_of(emulated_module),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    one, four = map(int, done.stdout.split())
    print(f"\n{blocks}: {one} launches a step for one student, {four} for four")
    assert 20 < one == four <= most


def test_the_engine_is_exact_on_emulated_cuda(emulated_module: Path) -> None:
    # Under this schedule, work on a side stream is done as late as its events allow; at once below.
    run_tests_of(ENGINE, emulated_module, order=1)
    run_tests_of(("fused_blocks",), emulated_module, 0, "match_the_reference", "tf32")


@pytest.mark.slow
@pytest.mark.parametrize("order", range(4))
def test_all_operators_are_exact_under_every_schedule(emulated_module: Path, order: int) -> None:
    run_tests_of(ENGINE + OPERATORS, emulated_module, order)
