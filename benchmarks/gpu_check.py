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

from gpu_stages.settings import NOT_RUN, STAGES, NotRun, Record, Settings  # noqa: E402

SOURCE = HERE.parent
TAIL = 4000  # characters of a stage's output that are kept
MINUTES = 9.0, 12.0  # at most: of a call, and of all calls that add to one record
DONE = ("passed", "failed", "timed out")  # of these a resumed call runs none again unasked


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the stages one after another; see the module."""
    arguments = parse(argv)
    if arguments.child is not None:
        return run_child(Settings.from_json(arguments.child), arguments.out)
    began = time.monotonic()
    report: dict[str, Any] = {
        "program": "benchmarks/gpu_check.py",
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": arguments.commit or commit(),
        "device": arguments.device,
        "quick": arguments.quick,
        "installed": arguments.installed,
        "seconds": 0.0,
        "stages": {},
    }
    if arguments.resume:
        report = earlier(arguments.out, report)
    spent, stages = report["seconds"], report["stages"]
    deadline = began + min(60 * arguments.minutes, 60 * MINUTES[1] - spent)
    names = arguments.stages or [
        name for name in STAGES if stages.get(name, {}).get("status") not in DONE
    ]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(arguments.scratch) as scratch:
        root = SOURCE if arguments.installed else scratch / "source"
        root.mkdir(exist_ok=True)
        if not arguments.installed and not list(root.glob("trajmatch/_C*")):
            names = [name for name in STAGES if name in (*names, "build")]
        for name in names:
            settings = Settings(
                name, arguments.device, arguments.quick, arguments.installed, SOURCE, root
            )
            seconds = min(STAGES[name].seconds, deadline - time.monotonic())
            outcome = run_stage(settings, scratch, seconds)
            stages[name] = outcome
            report["seconds"] = round(spent + time.monotonic() - began, 1)
            arguments.out.write_text(json.dumps(report, indent=1) + "\n")
            limit = f"of at most {STAGES[name].seconds:.0f} s"
            print(f"{name:16} {outcome['status']:10} {outcome['seconds']:6.1f} {limit}", flush=True)
            for fault in outcome["result"].get("faults", []):
                print(f"  {fault}", flush=True)
    print(f"{arguments.out}: {report['seconds']} s in all")
    statuses = [outcome["status"] for outcome in stages.values()]
    return 1 if {"failed", "timed out"} & set(statuses) else 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="smallest sizes only")
    parser.add_argument(
        "--installed", action="store_true", help="use the trajmatch that Python finds; build none"
    )
    parser.add_argument(
        "--stages",
        type=lambda text: [name for name in STAGES if name in checked(text.split(","))],
        help="which, joined by commas (default: all, or those that are left), each with its limit: "
        + ", ".join(f"{name} ({stage.seconds:.0f} s)" for name, stage in STAGES.items()),
    )
    parser.add_argument(
        "--resume", action="store_true", help="add to what an earlier call wrote to --out"
    )
    parser.add_argument(
        "--minutes", type=float, default=MINUTES[0], help="for all stages of this call together"
    )
    parser.add_argument("--commit", help="what git says where there is no git")
    parser.add_argument("--scratch", type=Path, help="folder to build in, and to keep")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "gpu_check.json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def earlier(out: Path, report: dict[str, Any]) -> dict[str, Any]:
    """The report that an earlier call wrote, where it was of the same commit and settings."""
    if not out.exists():
        return report
    found: dict[str, Any] = json.loads(out.read_text())
    for name in ("commit", "device", "quick", "installed"):
        if found.get(name) != report[name]:
            print(f"{out} is of another {name}, {found.get(name)}: all begins anew", flush=True)
            return report
    return found


def checked(names: list[str]) -> list[str]:
    """The names, which all must be stages."""
    unknown = [name for name in names if name not in STAGES]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"there is no stage {unknown[0]!r}; there are {', '.join(STAGES)}"
        )
    return names


def run_stage(settings: Settings, scratch: Path, seconds: float) -> dict[str, Any]:
    """Runs one stage in a process of its own.

    Args:
        settings: What it is told.
        scratch: Where it may write.
        seconds: When it is stopped, with all that it started.

    Returns:
        ``status`` (passed, failed, timed out, not run), ``rc``, ``seconds``, ``result`` (what it
        recorded) and ``output``, the end of what it printed.
    """
    if seconds <= 0:
        return {
            "status": "not run",
            "rc": None,
            "seconds": 0.0,
            "result": {"reason": "no time was left"},
            "output": "",
        }
    result, output = scratch / f"{settings.stage}.json", scratch / f"{settings.stage}.log"
    result.unlink(missing_ok=True)
    command = [
        sys.executable,
        str(Path(__file__).resolve()),
        f"--child={settings.to_json()}",
        f"--out={result}",
    ]
    environment = dict(os.environ)
    if not settings.installed:
        paths = [str(settings.root), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    began = time.monotonic()
    rc = run_limited(command, environment, output, seconds)
    status = {0: "passed", NOT_RUN: "not run", None: "timed out"}.get(rc, "failed")
    return {
        "status": status,
        "rc": rc,
        "seconds": round(time.monotonic() - began, 2),
        "result": json.loads(result.read_text()) if result.exists() else {},
        "output": "" if status == "passed" else tail(output),
    }


def run_limited(
    command: list[str], environment: dict[str, str], output: Path, seconds: float
) -> int | None:
    """The exit status of a command; None where time ran out, and it was ended with all its own."""
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
    """Does one stage; the exit status says how it went."""
    record = Record(out)
    try:
        importlib.import_module(f"gpu_stages.{STAGES[settings.stage].module}").run(settings, record)
    except NotRun as reason:
        record.put("reason", str(reason))
        return NOT_RUN
    return 1 if record.content["faults"] else 0


@contextlib.contextmanager
def scratch_folder(chosen: Path | None) -> Any:
    """A folder that is removed in the end, or the one that was chosen."""
    if chosen is not None:
        chosen.mkdir(parents=True, exist_ok=True)
        yield chosen.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="trajmatch-gpu-check-") as folder:
        yield Path(folder)


def tail(output: Path) -> str:
    """The end of a file of text."""
    return output.read_text(errors="replace")[-TAIL:]


def commit() -> str | None:
    """The commit of the source tree, with ``+`` where files differ from it; None without git."""
    try:
        describe = ["git", "-C", str(SOURCE), "describe", "--always", "--abbrev=12", "--dirty=+"]
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


if __name__ == "__main__":
    sys.exit(main())
