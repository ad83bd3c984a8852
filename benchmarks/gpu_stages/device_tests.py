"""The project's tests on the device: all with the marker for a GPU, and all of the operators."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

from gpu_stages.settings import NotRun, Record, Settings

COUNTS = ("tests", "failures", "errors", "skipped")


def run(settings: Settings, record: Record) -> None:
    """Run pytest; every run with a failure is a fault."""
    if find_spec("pytest") is None:
        raise NotRun("pytest is not installed")
    runs = {"cuda": ["tests", "-m", "cuda and not slow"], "ops": ["tests/ops"]}
    if settings.quick:
        few = ["tests/ops/test_param_distance.py", "-k", "not opcheck and not compiles"]
        runs = {"cuda": [*few, "-m", "cuda"], "ops": few}
    for name, arguments in runs.items():
        report = record.folder / f"tests-{name}.xml"
        command = [sys.executable, "-m", "pytest", *arguments, "-q", "-p", "no:cacheprovider"]
        # A module whose own imports are missing here takes no other with it.
        command += ["--continue-on-collection-errors"]
        status = subprocess.run(
            [*command, f"--junitxml={report}"], cwd=settings.root, check=False
        ).returncode
        record.put(name, {"command": " ".join(command[1:]), "rc": status, **counts(report)})
        if status != 0:
            record.fault(f"pytest {' '.join(arguments)} ended with status {status}")


def counts(report: Path) -> dict[str, int]:
    """Count the tests that ran, failed and were skipped, from pytest's own report."""
    if not report.exists():
        return {}
    suite = ElementTree.parse(report).getroot().find("testsuite")
    return {} if suite is None else {name: int(suite.get(name, 0)) for name in COUNTS}
