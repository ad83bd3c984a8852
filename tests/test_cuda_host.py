"""The CUDA path of the operators, host code included, on the CPU emulator (tests/emulator).

An extension module is built of the very sources of csrc/ops and csrc/cuda, with the emulator's
launches, and takes the CUDA path for CPU tensors (``TRAJMATCH_EMULATED`` in csrc/ops/torch_api.h).
The operators' own tests then run on it, in a process of their own, against float64. What it cannot
show: streams, and what PyTorch's own operators (convolutions of large networks) do on CUDA. No CPU
loop is linked in: a call of one would end the process.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
EMULATOR = ROOT / "tests" / "emulator"
BUILD = ROOT / "build" / f"emulated-{sys.implementation.cache_tag}"  # objects are used again
FACTS = 'constexpr char kBuildFacts[] = R"json(trajmatch-build-facts{"emulated": true})json";\n'

ENGINE = ("student", "unroll", "unroll_networks", "fused_blocks")
OPERATORS = ("norm_act_pool", "param_distance", "sgd_step", "soft_cross_entropy")
# Checks of the Python side, which are the same whatever runs below it.
PYTHON_ONLY = ("opcheck", "compiles", "gradcheck", "errors", "other_modules", "outside")

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")


def load(name: str) -> ModuleType:
    """A module of _build, which is not part of the package but a script's neighbour."""
    # Under a name of its own: tests/test_build.py replaces parts of the module that it loads.
    name_here = f"host_{name}"
    spec = importlib.util.spec_from_file_location(name_here, ROOT / "_build" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[name_here] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


compilation = load("compilation")
torch_release = load("torch_release")


@pytest.fixture(scope="module")
def emulated_module() -> Path:
    """Builds the module: about 35 seconds of one core, nothing where no source changed."""
    torch = torch_release.find_torch()
    assert torch is not None
    BUILD.mkdir(parents=True, exist_ok=True)
    facts = BUILD / "build_facts.h"
    if not facts.exists() or facts.read_text() != FACTS:
        facts.write_text(FACTS)
    # Quick to compile is what matters; the kernels alone are worth optimising.
    compiler = [
        *("g++", "-std=c++20", "-fPIC", "-fvisibility=hidden"),
        *("-DTRAJMATCH_WITH_CUDA", "-DTRAJMATCH_EMULATED"),
        "-DTORCH_TARGET_VERSION=0x020b000000000000",
        *(f"-I{folder}" for folder in (CSRC, EMULATOR, BUILD)),
        *(f"-isystem{path}" for path in (sysconfig.get_path("include"), *torch.include_dirs)),
    ]
    kernels = [*CSRC.glob("cuda/*.cu"), *EMULATOR.glob("runtime/*.cpp")]
    host = [*CSRC.glob("*.cpp"), *CSRC.glob("ops/*.cpp"), *EMULATOR.glob("host/*.cpp")]
    jobs = [
        compilation.Job(source, BUILD / f"{source.relative_to(ROOT)}.o", (*compiler, *flags))
        for sources, flags in ((kernels, ("-O1", "-x", "c++")), (host, ("-O0",)))
        for source in sources
    ]
    compilation.compile_changed(jobs)
    module = BUILD / "_C.so"
    libraries = [f"-L{torch.library_dir}", "-ltorch_cpu", "-lc10", "-pthread"]
    objects = [str(job.object) for job in jobs]
    compilation.run(["g++", "-shared", *objects, *libraries, "-o", str(module)])
    return module


def environment_of(module: Path) -> dict[str, str]:
    """The environment of a process whose ``import emulated_module`` finds the module."""
    path = os.pathsep.join(filter(None, [str(EMULATOR / "host"), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "TRAJMATCH_EMULATED_MODULE": str(module)}


def run_tests_of(operators: tuple[str, ...], module: Path, order: int) -> str:
    """Runs tests/ops/test_<operator>.py on the emulated module; gives what pytest printed."""
    selection = " and ".join(f"not {word}" for word in ("cuda", *PYTHON_ONLY))
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
import emulated_module, os, sys, torch
from trajmatch import networks, ops, random

os.environ["TRAJMATCH_CUDA_BLOCKS"], width, depth = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
draw = random.generator(0, "card")
model = networks.initialise(networks.ConvNet(3, 4, 32, width=width, depth=depth), draw)
theta, images = networks.flat_parameters(model), torch.randn(2, 3, 32, 32, generator=draw)

def found():
    results = ops.gradient_jvp(model, theta, images, torch.tensor([0, 3]), theta.flip(0))
    return ops.tape_bytes(model, [2], device="cuda"), results.grad_theta, results.grad_images

chosen = found()
os.environ["TRAJMATCH_CUDA_BLOCKS"] = "library"
library = found()
print(chosen[0] == library[0], *(torch.equal(*pair) for pair in zip(chosen[1:], library[1:])))
for one, other in zip(chosen[1:], library[1:]):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
"""


@pytest.mark.parametrize(
    ("blocks", "width", "depth", "shared_kib", "library"),
    [("first", 16, 1, 64, True), ("first", 16, 1, 99, False), ("tf32", 128, 2, 64, True)],
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


def test_the_engine_is_exact_on_emulated_cuda(emulated_module: Path) -> None:
    run_tests_of(ENGINE, emulated_module, order=0)


@pytest.mark.slow
@pytest.mark.parametrize("order", range(4))
def test_all_operators_are_exact_under_every_schedule(emulated_module: Path, order: int) -> None:
    run_tests_of(ENGINE + OPERATORS, emulated_module, order)
