"""Fixtures that all tests share."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from trajmatch.cli.main import SPIN_COUNT
from trajmatch.errors import UserError

# As in the program itself, before torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)

# Equal bytes are promised on the CPU, where what a test does not say computes, GPU or not.
os.environ["TRAJMATCH_DEVICE"] = "cpu"

# Programs that tests start import what is installed, not the source folder that they start in.
os.environ["PYTHONSAFEPATH"] = "1"

# With one test process per core, threads of several processes would wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

# A shell starts what it runs in the background with ctrl-C ignored, nohup with a lost terminal, and
# programs hand that on to what they start. The tests are about what a terminal does.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# The tests of the default run: addopts in pyproject.toml.
DEFAULT_MARKS = "not slow and not harness"

# How far a result may be from an exact one, by its dtype. float64 is where correctness is judged;
# in float32 two correct implementations differ by the order of their sums.
TOLERANCES: dict[torch.dtype, dict[str, float]] = {
    torch.float64: {"rtol": 1e-9, "atol": 1e-11},
    torch.float32: {"rtol": 1e-4, "atol": 1e-5},
}


@pytest.fixture(autouse=True)
def _flags_in_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages read as on the command line, wherever they are raised."""
    monkeypatch.setattr(UserError, "__str__", ValueError.__str__)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _exact_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, the library's convolutions in float32 and in one order: tests compare with them."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


@pytest.fixture
def tolerance() -> Callable[[torch.dtype], dict[str, float]]:
    """The arguments of ``torch.testing.assert_close`` for a dtype."""
    return TOLERANCES.__getitem__


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU and, where there is one, the GPU."""
    return torch.device(request.param)


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """The dtypes that the operators take."""
    chosen: torch.dtype = request.param
    return chosen


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Give the whole default run a process for each core, and chosen tests only this one."""
    default = config.args_source is pytest.Config.ArgsSource.TESTPATHS and (
        config.option.markexpr == DEFAULT_MARKS
    )
    if "PYTEST_XDIST_WORKER" in os.environ:  # one of those processes
        return
    if default and config.getoption("numprocesses", 0) is None and not config.option.usepdb:
        config.option.numprocesses = min(len(os.sched_getaffinity(0)), 8)
        config.option.dist = "worksteal"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="there is no GPU here"))
