"""The smallest cases of the operators under the tools of compute-sanitizer.

memcheck finds wrong memory accesses; initcheck, reads of memory that nobody wrote; synccheck,
barriers that not all threads reach; racecheck, races in shared memory.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from gpu_stages.settings import SOURCE, NotRun, Record, Settings

#: Where CUDA puts the program, beside the PATH.
PLACES = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer")
#: The tool's exit status when it found something.
FOUND = 86
#: The tool of each stage, and the stage whose smallest cases run under it. Only own_kernels has a
#: network large enough for the kernels of whole blocks.
CASES = {
    "memcheck": ("memcheck", "agreement"),
    "memcheck_own": ("memcheck", "own_kernels"),
    "initcheck": ("initcheck", "own_kernels"),
    "synccheck": ("synccheck", "own_kernels"),
    "racecheck": ("racecheck", "own_kernels"),
}
SUMMARY = " SUMMARY:"  # "ERROR SUMMARY" of memcheck, "RACECHECK SUMMARY" of racecheck


def run(settings: Settings, record: Record) -> None:
    """Run the smallest cases of another stage under the tool of this stage."""
    if settings.device != "cuda":
        raise NotRun("compute-sanitizer checks CUDA kernels, and this is a check of the CPU")
    places = (os.environ.get("PATH", ""), f"{os.environ.get('CUDA_HOME')}/bin", *PLACES)
    program = shutil.which("compute-sanitizer", path=os.pathsep.join(places))
    if program is None:
        raise NotRun("compute-sanitizer is not installed")
    check(program, settings, record)


def check(program: str, settings: Settings, record: Record) -> None:
    """Run the cases; what the tool finds, and cases that fail under it, are faults."""
    tool, cases = CASES[settings.stage]
    command = [
        program,
        f"--tool={tool}",
        f"--error-exitcode={FOUND}",
        # The kernels of libraries are many and not ours.
        "--kernel-name",
        "kns=trajmatch",
        sys.executable,
        str(SOURCE / "benchmarks" / "gpu_check.py"),
        f"--child={json.dumps({**vars(settings), 'stage': cases, 'quick': True})}",
        f"--out={record.folder / 'under_the_tool.json'}",
    ]
    # Memory in blocks of its own for every tensor, so that an access beyond one is seen.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    answer = subprocess.run(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(answer.stdout)
    record.put("program", program)
    record.put("rc", answer.returncode)
    lines = [line for line in answer.stdout.splitlines() if SUMMARY in line]
    record.put("summary", lines[-1].strip("= ") if lines else None)
    if answer.returncode != 0:
        what = "found errors" if answer.returncode == FOUND else "or the cases failed"
        record.fault(f"{Path(program).name} {what} (status {answer.returncode})")
