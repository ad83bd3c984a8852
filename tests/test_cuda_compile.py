"""nvcc compiles every CUDA kernel for all supported architectures, without a spilled register.

With ``-s`` pytest shows the registers and the shared memory of each kernel that is compiled.
"""

from __future__ import annotations

import shutil
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
        pytest.param(architecture_flags(EACH), id=" ".join(EACH), marks=pytest.mark.slow),
    ],
)
def test_kernels_compile_without_spills(architectures: list[str]) -> None:
    compiler = [*FLAGS, *architectures]
    compiled("kernels.a", [(sorted(CSRC.glob("cuda/*.cu")), compiler)], ["nvcc", "-lib"])


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
