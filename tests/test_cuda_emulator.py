"""The CUDA kernels on the project's CPU emulator (tests/emulator), with sanitizers.

The very sources that nvcc compiles are built by g++ and run against the CPU loops, each case under
two of the four schedules of warps and blocks (all four: ``-m slow``), with every memory access
checked. The emulator itself is tested with
kernels that are known to be wrong.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from compiled import CSRC, EMULATOR, compiled

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")

CXX = ["g++", "-std=c++20", "-Wall", "-Wextra", "-Werror", f"-I{EMULATOR}", f"-I{CSRC}"]
# The CPU loops are what is compared with, not what is tested: quick to compile is what matters.
REFERENCE_FLAGS = ["-O0", "-Wno-unknown-pragmas", "-Wno-maybe-uninitialized"]
# Checks as calls instead of inline code, which takes twice as long to compile.
ADDRESS_FLAGS = [
    *("-O1", "-g1", "-fsanitize=address,alignment,bounds", "-fno-sanitize-recover=all"),
    *("--param", "asan-instrumentation-with-call-threshold=0"),
]
# The emulator tells AddressSanitizer of its fibers, but is not itself checked: it would be slow.
ADDRESS_RUNTIME_FLAGS = ["-O2", "-g1", "-fsanitize=address"] + [
    flag
    for part in ("instrument-reads", "instrument-writes", "stack", "globals")
    for flag in ("--param", f"asan-{part}=0")
]
# As nvcc does by default: a product and a sum with it are rounded once. g++ does so from -O2 on.
CONTRACTION_FLAGS = ["-O2", "-ffp-contract=fast"]
CONTRACTION_FLAGS += ["-mfma"] if platform.machine() == "x86_64" else []
THREAD_FLAGS = ["-O1", "-g1", "-fsanitize=thread", "-DTRAJMATCH_EMULATOR_OS_THREADS"]
ENVIRONMENT = {
    **{key: value for key, value in os.environ.items() if not key.startswith("TRAJMATCH_")},
    "ASAN_OPTIONS": "detect_leaks=0",
    "TSAN_OPTIONS": "halt_on_error=1",
}


def run(command: list[str], environment: dict[str, str] | None = None) -> str:
    """Runs a command that must succeed."""
    result = run_any(command, environment)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def run_any(
    command: list[str], environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env={**ENVIRONMENT, **(environment or {})}, capture_output=True, text=True
    )


def build(name: str, *parts: tuple[list[Path], list[str]], sanitizers: list[str]) -> Path:
    """A program of sources with their flags, and of the emulator."""
    compilers = [(sources, [*CXX, *flags, "-x", "c++"]) for sources, flags in parts]
    return compiled(name, compilers, ["g++", *sanitizers], "-pthread")


def build_self_test(name: str, flags: list[str], runtime_flags: list[str]) -> Path:
    return build(
        name,
        ([EMULATOR / "test_emulator.cpp"], flags),
        (sorted(EMULATOR.glob("runtime/*.cpp")), runtime_flags),
        sanitizers=[flag for flag in flags if flag.startswith("-fsanitize")],
    )


def build_kernel_test(name: str, flags: list[str], runtime_flags: list[str]) -> Path:
    families = sorted(EMULATOR.glob("kernels/*.cpp"))
    names = ("isa.cpp", "student/norm.cpp", *(path.name for path in families))
    loops = [CSRC / "cpu" / name for name in names]
    return build(
        name,
        (sorted(CSRC.glob("cuda/*.cu")), flags),
        (sorted(EMULATOR.glob("runtime/*.cpp")), runtime_flags),
        (
            [EMULATOR / "test_kernels.cpp", *families],
            ["-O1", *(flag for flag in flags if flag.startswith("-D"))],
        ),
        ([path for path in loops if path.exists()], REFERENCE_FLAGS),
        sanitizers=[flag for flag in flags if flag.startswith("-fsanitize")],
    )


@pytest.fixture(scope="module")
def self_test() -> Path:
    return build_self_test("test_emulator", ADDRESS_FLAGS, ADDRESS_RUNTIME_FLAGS)


@pytest.fixture(scope="module")
def race_self_test() -> Path:
    return build_self_test("race_test_emulator", THREAD_FLAGS, THREAD_FLAGS)


@pytest.mark.parametrize("order", range(4))
def test_the_emulator_runs_sound_kernels_and_catches_unsound_ones(
    self_test: Path, order: int
) -> None:
    output = run([str(self_test)], {"TRAJMATCH_EMULATOR_ORDER": str(order)})
    assert "25 of 25 cases passed" in output


@pytest.mark.parametrize("seed", ["1", "2", "3"])
def test_random_schedules_follow_the_seed(self_test: Path, seed: str) -> None:
    run([str(self_test)], {"TRAJMATCH_EMULATOR_ORDER": "3", "TRAJMATCH_EMULATOR_SEED": seed})


def test_a_schedule_that_does_not_exist_is_refused(self_test: Path) -> None:
    result = run_any([str(self_test)], {"TRAJMATCH_EMULATOR_ORDER": "4"})
    assert result.returncode == 1
    assert "TRAJMATCH_EMULATOR_ORDER must be a number from 0 to 3, but is '4'" in result.stderr


@pytest.mark.parametrize(
    ("fault", "report"),
    [
        ("global_overflow", "heap-buffer-overflow"),
        ("shared_overflow", "use-after-poison"),
        ("misaligned", "misaligned address"),
    ],
)
def test_accesses_out_of_bounds_are_caught(self_test: Path, fault: str, report: str) -> None:
    result = run_any([str(self_test), "fault", fault])
    assert result.returncode not in (0, 2)
    assert report in result.stderr
    assert "test_emulator.cpp" in result.stderr  # the kernel's line


def test_a_sound_kernel_gives_no_report(self_test: Path) -> None:
    assert "fault none went unnoticed" in run([str(self_test), "fault", "none"])


def test_fibers_of_other_processors() -> None:
    """Without the assembly of x86-64, the fibers of the C library do."""
    flags = ["-O1", "-DTRAJMATCH_EMULATOR_UCONTEXT"]
    program = build_self_test("ucontext_test_emulator", flags, flags)
    assert "25 of 25 cases passed" in run([str(program)])


@pytest.mark.parametrize("schedules", ["--pairs", pytest.param("--share", marks=pytest.mark.slow)])
def test_kernels_agree_with_the_cpu_loops(schedules: str) -> None:
    run_cases(build_kernel_test("test_kernels", ADDRESS_FLAGS, ADDRESS_RUNTIME_FLAGS), schedules)


@pytest.mark.slow
def test_kernels_agree_when_products_and_sums_are_contracted() -> None:
    run_cases(build_kernel_test("contracted_test_kernels", CONTRACTION_FLAGS, ["-O2"]), "--pairs")


def run_cases(program: Path, schedules: str) -> None:
    """Runs all cases, shared out among the processors."""
    shares = min(os.cpu_count() or 1, 8)
    commands = [[str(program), schedules, str(first), str(shares)] for first in range(shares)]
    with ThreadPoolExecutor(shares) as pool:
        list(pool.map(run, commands))


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["race_in_block", "race_between_blocks"])
def test_races_are_caught(race_self_test: Path, fault: str) -> None:
    result = run_any([str(race_self_test), "fault", fault])
    assert result.returncode not in (0, 2)
    assert "ThreadSanitizer: data race" in result.stderr


@pytest.mark.slow
def test_sound_kernels_have_no_races(race_self_test: Path) -> None:
    assert "8 of 8 cases passed" in run([str(race_self_test)])


@pytest.mark.slow
def test_kernels_have_no_races() -> None:
    program = build_kernel_test("race_test_kernels", THREAD_FLAGS, THREAD_FLAGS)
    small = [
        *("param_distance backward 257", "param_distance 257", "sgd_step 257"),
        *("optimiser_step 9 of 257", "optimiser_step sweep 5 of 257"),
        *("batch_rows 3 of 10", "dsa forward of 2 x 1 x 6", "soft_cross_entropy 5 of 33"),
        *("norm_act_pool combination 41", "norm_act_pool size 4", "norm_act_pool size 9"),
        "fused_convolution product K1 B1 S8 C32 tf32",
    ]
    run([str(program), *small])
