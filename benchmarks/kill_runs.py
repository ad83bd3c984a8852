"""Kill expert training and distillation at random moments, and go on until they are done.

    python benchmarks/kill_runs.py --kills 200

Every run is a store of experts and a distillation of tiny images. A process of its own does each
stage and gets SIGKILL after a random share of the time that the stage takes; then every file that
is there must be readable, and another process goes on with ``--resume``. When both stages are done,
experts, distilled set and log must be those of a run that was left alone, byte by byte (the log
without the seconds in it). Runs follow each other until there were enough kills.

Prints one line of numbers; the exit status is 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

# One thread in all processes: a fork of a process with threads may hang.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch

from trajmatch import files
from trajmatch.cli.main import main as command
from trajmatch.errors import UserError

#: Modules that every process would else import for itself.
IMPORTED = ("trajmatch.cli.arguments", "trajmatch.experts.train", "trajmatch.distill.loop")

#: Commands by stage, with the run's folder and the data in the place of 0 and 1.
STAGES = {
    "expert": "expert --out {0}/experts --data {1} --num-experts 3 --epochs 6 --batch-size 8 "
    "--lr 0.05 --optimiser adam --lr-decay 0.5 --width 4 --depth 1 --workers 1 "
    "--checkpoint-seconds 0 --resume --quiet",
    "distill": "distill --experts {0}/experts --out {0}/distilled.safetensors --iterations 60 "
    "--student-steps 4 --expert-epochs 1 --max-start-epoch 4 --checkpoint-every 3 --eval-every 25 "
    "--eval-seeds 1 --eval-epochs 2 --select test-max --ema 0.9 --labels soft --resume --quiet",
}


def main() -> int:
    """Run the program; return its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200, help="number of kills")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in IMPORTED:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        losses = kill_runs(given.kills, random.Random(given.seed), Path(folder))
    print(*losses, sep="\n", end="", file=sys.stderr)
    return 1 if losses else 0


def kill_runs(wanted: int, draws: random.Random, folder: Path) -> list[str]:
    """Kill and resume runs; return what was lost, a line each."""
    data = write_data(folder / "images.npz")
    alone = folder / "alone"
    took = {stage: finish(stage, alone, data) for stage in STAGES}
    whole = results(alone)
    kills: Counter[str] = Counter()
    unfinished, number, losses = 0, 0, list[str]()
    while kills.total() < wanted and not losses:
        run = folder / f"run{number}"
        try:
            for stage in STAGES:
                while kills.total() < wanted and killed(stage, run, data, draws, took[stage]):
                    kills[stage] += 1
                    unfinished += check(run)
                finish(stage, run, data)
        except UserError as error:
            losses.append(f"{run.name}: {error}")
            break
        number += 1
        found = results(run)
        names = sorted(found.keys() | whole.keys())
        losses += [f"{name} differs" for name in names if found.get(name) != whole.get(name)]
    parts = ", ".join(f"{kills[stage]} in {stage}" for stage in STAGES)
    print(
        f"{kills.total()} kills ({parts}; {unfinished} in the middle of a write), {number} runs "
        f"compared with one left alone, {len(losses)} losses"
    )
    return losses


def write_data(path: Path) -> str:
    """Write 24 images of three classes; return the URI."""
    draws = np.random.default_rng(0)
    labels = np.arange(24) % 3
    images = draws.integers(0, 120, (24, 8, 8, 1), dtype=np.uint8)
    images[np.arange(24), 2 * labels] += 100
    np.savez(path, x_train=images, y_train=labels, x_test=images[:9], y_test=labels[:9])
    return f"npz:{path}"


def begin(stage: str, run: Path, data: str) -> int:
    """Start a stage in a fork of this process, because importing torch takes seconds."""
    if process := os.fork():
        return process
    try:
        os._exit(command(STAGES[stage].format(run, data).split()))
    finally:
        os._exit(1)


def finish(stage: str, run: Path, data: str) -> float:
    """Do a stage to its end, in a process of its own; return the seconds it took."""
    began = time.perf_counter()
    _, status = os.waitpid(begin(stage, run, data), 0)
    if status:
        raise UserError(f"{stage} failed with status {status}")
    return time.perf_counter() - began


def killed(stage: str, run: Path, data: str, draws: random.Random, most: float) -> bool:
    """Kill a stage after a random part of a time; false if it was done before."""
    process = begin(stage, run, data)
    time.sleep(draws.uniform(0, 0.7 * most))
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    if status and os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
        raise UserError(f"{stage} failed with status {status} before it was killed")
    return status != 0


def check(run: Path) -> bool:
    """Read every file; true if there is a new unfinished one, which is made to look old.

    A later command removes unfinished files that are old.
    """
    for path in run.glob("**/*.safetensors"):
        if ".trajmatch-" not in str(path):
            files.load_tensors(path)
    found = run.glob("**/.trajmatch-*.tmp")
    unfinished = [path for path in found if path.stat().st_mtime]
    for path in unfinished:
        for each in (*path.rglob("*"), path):
            os.utime(each, (0, 0))
    return bool(unfinished)


def results(run: Path) -> dict[str, object]:
    """Return all that a finished run leaves, without times."""
    paths = [path for path in run.glob("**/*") if path.is_file() and ".trajmatch-" not in str(path)]
    left: dict[str, object] = {str(path.relative_to(run)): path.read_bytes() for path in paths}
    lines = (run / "distilled.jsonl").read_text().splitlines()
    return {**left, "distilled.jsonl": [{**json.loads(line), "seconds": None} for line in lines]}


if __name__ == "__main__":
    sys.exit(main())
