"""All that has to be seen on a GPU, in calls of at most nine minutes, without a network.

    python benchmarks/gpu_check.py --scratch build/gpu_check
    python benchmarks/gpu_check.py --scratch build/gpu_check --resume   # what had no time left
    python benchmarks/gpu_check.py --resume --stages profile,cudnn      # these (again)
    python benchmarks/gpu_check.py --device cpu --quick --installed     # to try this program

It builds the extension in a scratch folder, with the torch that is there; runs the self-test and
the tests on the device; compares every operator there with the CPU build and with float64; profiles
a student step and the first layer's kernels; tries cuDNN's settings, memory that runs out, a whole
``distill``, large images and two devices; runs the smallest cases under compute-sanitizer's tools;
and measures the device's ceilings and one outer iteration beside its baselines. Every stage is a
process of its own with a time limit: one that fails or hangs is recorded, and the rest goes on. The
result is one JSON file, written anew after every stage, which ``--resume`` adds to; all calls
together take at most twelve minutes. The exit status is 1 where a stage failed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # also where Python is told not to look beside its program

from gpu_stages.settings import NOT_RUN, SOURCE, STAGES, NotRun, Record, Settings  # noqa: E402

TAIL = 4000  # characters of a stage's output that are kept
MINUTES = 9.0, 12.0  # at most: of a call, and of all calls that add to one record
DONE = ("passed", "failed", "timed out")  # a resumed call runs these again only if asked


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stages one after another; see the module."""
    given = parse(argv)
    if given.child is not None:
        return run_child(Settings(**json.loads(given.child)), given.out)
    began = time.monotonic()
    report = earlier(
        given,
        {
            "program": "benchmarks/gpu_check.py",
            "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "commit": given.commit or commit(),
            "device": given.device,
            "quick": given.quick,
            "installed": given.installed,
            "seconds": 0.0,
            "stages": {},
        },
    )
    spent, stages = report["seconds"], report["stages"]
    deadline = began + min(60 * given.minutes, 60 * MINUTES[1] - spent)
    names = given.stages or [
        name for name in STAGES if stages.get(name, {}).get("status") not in DONE
    ]
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        scratch = given.scratch or Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="trajmatch-gpu-check-"))
        )
        scratch = scratch.resolve()
        scratch.mkdir(parents=True, exist_ok=True)
        root = SOURCE if given.installed else scratch / "source"
        if not given.installed and not list(root.glob("trajmatch/_C*")):
            names = [name for name in STAGES if name in (*names, "build")]
        for name in names:
            settings = Settings(name, given.device, given.quick, given.installed, str(root))
            limit = STAGES[name].seconds
            left = min(limit, deadline - time.monotonic())
            outcome = stages[name] = run_stage(settings, scratch, left)
            report["seconds"] = round(spent + time.monotonic() - began, 1)
            given.out.write_text(json.dumps(report, indent=1) + "\n")
            took = f"{outcome['seconds']:6.1f} of at most {limit:.0f} s"
            print(f"{name:16} {outcome['status']:10} {took}", flush=True)
            for fault in outcome["result"].get("faults", []):
                print(f"  {fault}", flush=True)
    print(f"{given.out}: {report['seconds']} s in all")
    return 1 if {"failed", "timed out"} & {each["status"] for each in stages.values()} else 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    limits = ", ".join(f"{name} ({stage.seconds:.0f} s)" for name, stage in STAGES.items())
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="smallest sizes only")
    parser.add_argument("--installed", action="store_true", help="use trajmatch as Python finds it")
    parser.add_argument(
        "--stages", type=chosen, help=f"some, joined by commas, each with its limit: {limits}"
    )
    parser.add_argument("--resume", action="store_true", help="add to what --out holds")
    parser.add_argument("--minutes", type=float, default=MINUTES[0], help="for this call")
    parser.add_argument("--commit", help="what git says where there is no git")
    parser.add_argument("--scratch", type=Path, help="folder to build in, and to keep")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "gpu_check.json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def chosen(text: str) -> list[str]:
    """Stages from their names, in the order in which they run, as the type of an argument."""
    names = text.split(",")
    if unknown := [name for name in names if name not in STAGES]:
        raise argparse.ArgumentTypeError(
            f"there is no stage {unknown[0]!r}; there are {', '.join(STAGES)}"
        )
    return [name for name in STAGES if name in names]


def earlier(given: argparse.Namespace, report: dict[str, Any]) -> dict[str, Any]:
    """Return the report that an earlier call wrote, if it is of the same commit and settings."""
    if not given.resume or not given.out.exists():
        return report
    found: dict[str, Any] = json.loads(given.out.read_text())
    for name in ("commit", "device", "quick", "installed"):
        if found.get(name) != report[name]:
            was = found.get(name)
            print(f"{given.out} is of another {name}, {was}: all begins anew", flush=True)
            return report
    return found


def run_stage(settings: Settings, scratch: Path, seconds: float) -> dict[str, Any]:
    """Run one stage in a process of its own.

    Args:
        settings: Its arguments.
        scratch: Folder that it may write to.
        seconds: Time after which it is stopped, with all that it started.

    Returns:
        ``status`` (passed, failed, timed out, not run), ``rc``, ``seconds``, ``result`` (what it
        recorded) and ``output``, the end of what it printed.
    """
    if seconds <= 0:
        empty: dict[str, Any] = {"status": "not run", "rc": None, "seconds": 0.0, "output": ""}
        return {**empty, "result": {"reason": "no time was left"}}
    result, output = scratch / f"{settings.stage}.json", scratch / f"{settings.stage}.log"
    result.unlink(missing_ok=True)
    program, child = str(Path(__file__).resolve()), json.dumps(vars(settings))
    command = [sys.executable, program, f"--child={child}", f"--out={result}"]
    environment = dict(os.environ)
    if not settings.installed:
        paths = [settings.root, environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    began = time.monotonic()
    rc = run_limited(command, environment, output, seconds)
    status = {0: "passed", NOT_RUN: "not run", None: "timed out"}.get(rc, "failed")
    return {
        "status": status,
        "rc": rc,
        "seconds": round(time.monotonic() - began, 2),
        "result": json.loads(result.read_text()) if result.exists() else {},
        "output": "" if status == "passed" else output.read_text(errors="replace")[-TAIL:],
    }


def run_limited(
    command: list[str], environment: dict[str, str], output: Path, seconds: float
) -> int | None:
    """Return the exit status; None if time ran out and the command was killed, with children."""
    with output.open("wb") as file:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that all it starts can be ended together
        )
        try:
            return process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run_child(settings: Settings, out: Path) -> int:
    """Do one stage; the exit status says how it went."""
    record = Record(out)
    try:
        importlib.import_module(f"gpu_stages.{STAGES[settings.stage].module}").run(settings, record)
    except NotRun as reason:
        record.put("reason", str(reason))
        return NOT_RUN
    return 1 if record.content["faults"] else 0


def commit() -> str | None:
    """Return the commit of the source tree, with a + where files differ; None without git."""
    describe = ["git", "-C", str(SOURCE), "describe", "--always", "--abbrev=12", "--dirty=+"]
    try:
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


if __name__ == "__main__":
    sys.exit(main())
