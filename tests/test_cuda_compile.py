"""nvcc compiles every CUDA kernel for all supported architectures, without a spilled register.

With ``-s`` pytest shows the registers and the shared memory of each kernel that is compiled. The
machine code for sm_90 keeps to budgets of instructions.
"""

from __future__ import annotations

import operator
import os
import re
import shutil
import subprocess
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from compiled import CSRC, compiled
from cuda_toolkit import ARCHITECTURES, architecture_flags
from ninja_build import BuildError, NinjaBuild

# By default nvcc makes one PTX for both: that of 9.0 differs in no instruction, and takes as long
# as the machine code.
ALWAYS = ["-gencode=arch=compute_80,code=[sm_80,sm_90]"]
EACH = [each for each in ARCHITECTURES if each != "8.0"]
# Spilled registers and arrays in local memory are errors, as any warning of either compiler.
FLAGS = [
    *("nvcc", "-std=c++17", "-O3", f"-I{CSRC}"),
    "-Xptxas=-v,-warn-spills,-warn-lmem-usage,-Werror",
    *("-Xcompiler=-Wall,-Wextra,-Werror", "-Werror=all-warnings"),
]

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")


@pytest.mark.parametrize(
    "architectures",
    [
        pytest.param(ALWAYS, id="8.0 9.0"),
        pytest.param(
            [*architecture_flags(EACH), "-gencode=arch=compute_90a,code=sm_90a"],
            id=" ".join([*EACH, "9.0a"]),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_kernels_compile_without_spills(architectures: list[str]) -> None:
    library(architectures)


def library(architectures: list[str]) -> Path:
    """All kernels, compiled for some architectures."""
    sources = sorted(CSRC.glob("cuda/*.cu"))
    return compiled("kernels.a", [(sources, [*FLAGS, *architectures])], ["nvcc", "-lib"])


#: Most instructions of the first layer's kernels, for three input channels: of the only launch, and
#: of the first and the second one.
INSTRUCTIONS = {
    f"first_layer_{kernel}_kernel<3, (trajmatch::cuda::first_layer::Launch){launch}>": most
    for kernel, budgets in {
        "forward": (1400, 1060, 1860),
        "tangent": (1370, 980, 1720),
        "backward": (3900, 1400, 4000),
        "backward_tangent": (3700, 1500, 3800),
    }.items()
    for launch, most in enumerate(budgets)
}
#: Instructions that a thread of the first layer's kernels without tensor cores executed, with loops
#: counted as often as they run (by hand); and the kernels' blocks for 100 images at width 128.
WITHOUT_TENSOR_CORES = {
    "forward": (3470, 800),
    "tangent": (3360, 1600),
    "backward": (9240, 800),  # without the gradient of the images
    "backward_tangent": (9850, 1600),
}
#: How often their loops with products run: over the groups of taps, and over the tiles of a row.
TRIPS = 4
#: Budgets of the loops with products (HMMA), for the deeper blocks' widest and narrowest tiles and
#: for the first layer: most products in a loop, and most instructions and loads from shared memory
#: per product.
#: Kinds of product: TF32 (0), three TF32 products (1) and half precision (2).
LOOPS = {
    r"fused_(block|convolution)_\w*kernel<.*Tile<\d+, 128>, .*\)0>": (192, 1.9, 0.29),
    r"fused_(block|convolution)_\w*kernel<.*Tile<\d+, 32>, .*\)[02]>": (48, 4.0, 0.64),
    r"fused_block_\w*kernel<.*Tile<\d+, 64>, .*\)1>": (48, 6.5, 0.13),
    r"fused_(block|convolution)_\w*kernel<.*Tile<\d+, 128>, .*\)2>": (192, 2.0, 0.29),
    r"fused_convolution_weight_kernel<\d+, 128, .*\)0>": (96, 3.6, 0.72),
    r"fused_convolution_weight_kernel<\d+, 128, .*\)2>": (96, 2.5, 0.37),
    r"first_layer_\w+_kernel<3, .*": (48, 6.5, 1.42),
}


def machine_code(
    archive: Path, sources: str, architecture: str, folder: Path
) -> Iterator[tuple[str, list[tuple[int, str, str]]]]:
    """Yield name and instructions of each kernel: address, operation and operands.

    ``sources`` is a pattern of the sources whose objects are unpacked to ``folder``.
    """
    bins = [*Path(sysconfig.get_path("purelib")).glob("nvidia/cu*/bin")]
    path = os.pathsep.join([*map(str, bins), os.environ["PATH"]])
    missing = [tool for tool in ("cuobjdump", "nvdisasm") if not shutil.which(tool, path=path)]
    assert not missing, "pip install '.[test]' brings them"
    subprocess.run(["ar", "x", archive], cwd=folder, check=True)
    environment = {**os.environ, "PATH": path}
    texts = []
    for each in sorted(folder.glob(f"{sources}.cu.o")):
        command = ["cuobjdump", "-sass", "-arch", architecture, each.name]
        found = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=True
        )
        texts += found.stdout.split("Function :")[1:]
    line = re.compile(r"/\*([0-9a-f]{4,5})\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)([^;]*);")
    mangled = "\n".join(text.split("\n", 1)[0].strip() for text in texts)
    filtered = subprocess.run(
        ["c++filt"], input=mangled, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for text, name in zip(texts, filtered, strict=True):
        kernel = re.search(r"(\w+_kernel(<.*>)?)\(", name)
        assert kernel is not None, name
        yield kernel[1], [(int(at, 16), what, rest) for at, what, rest in line.findall(text)]


def inner_loops(instructions: list[tuple[int, str, str]]) -> Iterator[tuple[int, Counter[str]]]:
    """Yield the address of each loop that has no loop inside, and count its operations."""
    loops = []
    for at, what, rest in instructions:
        target = re.search(r"0x([0-9a-f]+)", rest)
        if what == "BRA" and target and int(target[1], 16) < at:
            loops.append((int(target[1], 16), at))
    for first, last in loops:
        if not any((first, last) != each and first <= each[0] <= each[1] <= last for each in loops):
            inside = (what for at, what, _ in instructions if first <= at <= last)
            yield first, Counter(what.partition(".")[0] for what in inside)


def executed(instructions: list[tuple[int, str, str]], images: bool) -> int:
    """Count the instructions that a thread executes, with or without the gradient of the images."""
    loops = [
        (first, sum(loop.values())) for first, loop in inner_loops(instructions) if loop["HMMA"]
    ]
    if not images and len(loops) > 1:  # the loops after the first one, and what follows them
        instructions = [each for each in instructions if each[0] < loops[1][0]]
        del loops[1:]
    return len(instructions) + (TRIPS - 1) * sum(length for _, length in loops)


@pytest.mark.parametrize(
    ("sources", "kernels"), [("f*", 60), pytest.param("*", 150, marks=pytest.mark.slow)]
)
def test_the_machine_code_keeps_to_its_budgets(sources: str, kernels: int, tmp_path: Path) -> None:
    sizes, moving, above, matched = {}, {}, {}, set()
    for name, instructions in machine_code(library(ALWAYS), sources, "sm_90", tmp_path):
        sizes[name] = len(instructions)
        print(f"{name}: {sizes[name]} instructions")
        budgets = [each for each in LOOPS if re.fullmatch(each, name)]
        matched.update(budgets)
        for _, loop in inner_loops(instructions):
            products = loop["HMMA"]
            if not products:
                continue
            each, loads = sum(loop.values()) / products, (loop["LDS"] + loop["LDSM"]) / products
            print(f"    {products} products; for each {each:.2f} instructions, {loads:.3f} loads")
            if loop["MOV"] > products:
                moving[name] = loop["MOV"], products
            found = products, each, loads
            if budgets and any(map(operator.gt, found, LOOPS[budgets[0]])):
                above[name] = found
    assert len(sizes) >= kernels and matched == LOOPS.keys()
    assert moving == {}, "more moves of registers than products"
    assert above == {}, "loops above their budgets"
    assert {name: sizes[name] for name, most in INSTRUCTIONS.items() if sizes[name] > most} == {}


def test_the_first_layer_executes_half_of_the_instructions(tmp_path: Path) -> None:
    found = dict(machine_code(library(ALWAYS), "first_layer*", "sm_90", tmp_path))
    before = after = 0
    for kernel, (old, blocks) in WITHOUT_TENSOR_CORES.items():
        name = f"first_layer_{kernel}_kernel<3, (trajmatch::cuda::first_layer::Launch)0>"
        new = executed(found[name], images=kernel != "backward")
        print(f"{kernel}: {old} instructions before, {new} now")
        before, after = before + old * blocks, after + new * blocks
    print(f"a step: {before / after:.2f} times as many before as now")
    assert after <= before / 2


ARRAY = """\
__global__ void kernel(float* x, int n) {
  float kept[64];
  for (int i = 0; i < 64; ++i) kept[(i * n) % 64] = x[i];
  for (int i = 0; i < 64; ++i) x[i] = kept[i];
}
"""
REGISTERS = """\
__global__ void __launch_bounds__(1024, 2) kernel(float* x, int n) {
  float kept[48];
  for (int i = 0; i < 48; ++i) kept[i] = x[i];
  __syncthreads();
  for (int i = 0; i < 48; ++i) x[i * n] = kept[i] * x[i];
}
"""


@pytest.mark.parametrize(
    ("kernel", "said"), [(ARRAY, "Local memory used"), (REGISTERS, "spilled to local memory")]
)
def test_a_spill_is_an_error(
    kernel: str, said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kernel.cu").write_text(kernel)
    ninja = NinjaBuild(tmp_path)
    compiler = [*FLAGS, *architecture_flags(["9.0"])]
    ninja.compile(tmp_path / "kernel.o", tmp_path / "kernel.cu", compiler)
    with pytest.raises(BuildError):
        ninja.run()
    assert said in capfd.readouterr().out
