"""The CUDA kernels on the project's CPU emulator (tests/emulator), with sanitizers.

The very sources that nvcc compiles are built by g++ and run against the CPU loops, under all four
schedules of warps and blocks, with every memory access checked. The emulator itself is tested with
kernels that are known to be wrong.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EMULATOR = ROOT / "tests" / "emulator"
CSRC = ROOT / "csrc"

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
THREAD_FLAGS = ["-O1", "-g1", "-fsanitize=thread", "-DTRAJMATCH_EMULATOR_OS_THREADS"]
ENVIRONMENT = {
    **{key: value for key, value in os.environ.items() if not key.startswith("TRAJMATCH_")},
    "ASAN_OPTIONS": "detect_leaks=0",
    "TSAN_OPTIONS": "halt_on_error=1",
}

Compile = Callable[[list[Path], list[str]], list[Path]]


@pytest.fixture(scope="module")
def compile_sources(tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """Compiles sources with the given flags; what has been compiled so is not compiled again."""
    folder = tmp_path_factory.mktemp("emulator")

    def compile_sources(sources: list[Path], flags: list[str]) -> list[Path]:
        def compile_one(source: Path) -> Path:
            name = "_".join([*source.relative_to(ROOT).parts, *flags]).replace("/", "_")
            target = folder / f"{name[:200]}.o"
            if not target.exists():
                run([*CXX, *flags, "-x", "c++", "-c", str(source), "-o", str(target)])
            return target

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(compile_one, sources))

    return compile_sources


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


def link(objects: list[Path], flags: list[str], program: Path) -> Path:
    sanitizers = [flag for flag in flags if flag.startswith("-fsanitize")]
    run(["g++", *sanitizers, *map(str, objects), "-o", str(program), "-pthread"])
    return program


def runtime_sources() -> list[Path]:
    return sorted((EMULATOR / "runtime").glob("*.cpp"))


def build_self_test(
    compile_sources: Compile, flags: list[str], runtime_flags: list[str], program: Path
) -> Path:
    objects = compile_sources([EMULATOR / "test_emulator.cpp"], flags)
    return link(objects + compile_sources(runtime_sources(), runtime_flags), flags, program)


def build_kernel_test(
    compile_sources: Compile, flags: list[str], runtime_flags: list[str], program: Path
) -> Path:
    families = sorted((EMULATOR / "kernels").glob("*.cpp"))
    sources = [EMULATOR / "test_kernels.cpp", *families]
    loops = [CSRC / "cpu" / name for name in ("isa.cpp", *(path.name for path in families))]
    references = [path for path in loops if path.exists()]
    unchecked = [flag for flag in flags if flag.startswith("-D")]
    objects = [
        *compile_sources(sorted((CSRC / "cuda").glob("*.cu")), flags),
        *compile_sources(runtime_sources(), runtime_flags),
        *compile_sources(sources, ["-O1", *unchecked]),
        *compile_sources(references, REFERENCE_FLAGS),
    ]
    return link(objects, flags, program)


@pytest.fixture(scope="module")
def self_test(compile_sources: Compile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("self_test") / "test_emulator"
    return build_self_test(compile_sources, ADDRESS_FLAGS, ADDRESS_RUNTIME_FLAGS, program)


@pytest.fixture(scope="module")
def race_self_test(compile_sources: Compile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("race_self_test") / "test_emulator"
    return build_self_test(compile_sources, THREAD_FLAGS, THREAD_FLAGS, program)


@pytest.mark.parametrize("order", range(4))
def test_the_emulator_runs_sound_kernels_and_catches_unsound_ones(
    self_test: Path, order: int
) -> None:
    output = run([str(self_test)], {"TRAJMATCH_EMULATOR_ORDER": str(order)})
    assert "22 of 22 cases passed" in output


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


def test_fibers_of_other_processors(compile_sources: Compile, tmp_path: Path) -> None:
    """Without the assembly of x86-64, the fibers of the C library do."""
    flags = ["-O1", "-DTRAJMATCH_EMULATOR_UCONTEXT"]
    program = build_self_test(compile_sources, flags, flags, tmp_path / "test_emulator")
    assert "22 of 22 cases passed" in run([str(program)])


def test_kernels_agree_with_the_cpu_loops(compile_sources: Compile, tmp_path: Path) -> None:
    program = build_kernel_test(
        compile_sources, ADDRESS_FLAGS, ADDRESS_RUNTIME_FLAGS, tmp_path / "test_kernels"
    )
    shares = min(os.cpu_count() or 1, 8)
    commands = [[str(program), "--share", str(first), str(shares)] for first in range(shares)]
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
    assert "7 of 7 cases passed" in run([str(race_self_test)])


@pytest.mark.slow
def test_kernels_have_no_races(compile_sources: Compile, tmp_path: Path) -> None:
    program = build_kernel_test(
        compile_sources, THREAD_FLAGS, THREAD_FLAGS, tmp_path / "test_kernels"
    )
    small = [
        *("param_distance backward 257", "param_distance 257", "sgd_step 257"),
        *("batch_rows 3 of 10", "dsa forward of 2 x 1 x 6", "soft_cross_entropy 5 of 33"),
        *("norm_act_pool combination 41", "norm_act_pool size 4", "norm_act_pool size 9"),
    ]
    run([str(program), *small])
