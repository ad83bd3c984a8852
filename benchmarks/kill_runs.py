"""Kills expert training and distillation at random moments, and goes on until they are done.

    python benchmarks/kill_runs.py --kills 200

Every run is a store of experts and a distillation of tiny images. A process of its own does each
part and gets SIGKILL after a random share of the time that the part takes; then every file that is
there must be readable, and another process goes on with ``--resume``. When both parts are done,
experts, distilled set and log must be those of a run that was left alone, byte by byte (the log
without the seconds in it). Runs follow each other until there were as many kills as asked for.

Prints one line of numbers; the status is 1 if anything was lost.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

# One thread in all processes: a fork of a process with threads may hang.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch

from trajmatch import artifact, files
from trajmatch.cli.arguments import parse
from trajmatch.distill import DistillConfig, distill
from trajmatch.errors import UserError
from trajmatch.experts import ExpertConfig, Store, train_experts
from trajmatch.experts.store import exists

PARTS = ("expert", "distill")


@dataclass(frozen=True, kw_only=True)
class KillConfig:
    """Kill runs at random moments, resume them, and compare them with a run left alone."""

    kills: int = 200
    """SIGKILLs in all."""
    seed: int = 0
    """Seed of the moments."""


@dataclass
class Findings:
    """What came of the kills.

    Attributes:
        kills: How many there were, by part.
        runs: Runs that were brought to their end.
        unfinished: Kills that left unfinished files behind, which the run then went past.
        losses: What was unreadable, different or failed, one line each.
    """

    kills: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    unfinished: int = 0
    losses: list[str] = field(default_factory=list)

    def line(self) -> str:
        """All of it in one line."""
        parts = ", ".join(f"{self.kills[part]} in {part}" for part in PARTS)
        return (
            f"{self.kills.total()} kills ({parts}; {self.unfinished} in the middle of a write), "
            f"{self.runs} runs compared with one left alone, {len(self.losses)} losses"
        )


@dataclass(frozen=True)
class Run:
    """The files of a run.

    Attributes:
        folder: Where they are.
        data: The images.
    """

    folder: Path
    data: str

    @property
    def store(self) -> Path:
        """The experts."""
        return self.folder / "experts"

    @property
    def distillation(self) -> DistillConfig:
        """What is distilled, and where to."""
        return DistillConfig(
            experts=self.store,
            out=self.folder / "distilled.safetensors",
            iterations=60,
            student_steps=4,
            expert_epochs=1,
            max_start_epoch=4,
            checkpoint_every=3,
            eval_every=25,
            eval_seeds=1,
            eval_epochs=2,
            select="test-max",
            ema=0.9,
            labels="soft",
            resume=True,
            quiet=True,
        )

    def do(self, part: str) -> None:
        """Does a part, or what is left of it."""
        if part == "distill":
            distill(self.distillation)
            return
        train_experts(
            ExpertConfig(
                out=self.store,
                data=self.data,
                num_experts=3,
                epochs=6,
                batch_size=8,
                lr=0.05,
                optimiser="adam",
                lr_decay=0.5,
                width=4,
                depth=1,
                workers=1,
                checkpoint_seconds=0,
                resume=True,
                quiet=True,
            )
        )

    def check(self) -> int:
        """Reads every file that is there.

        Returns:
            How many unfinished files there are.

        Raises:
            UserError: One cannot be read.
        """
        if exists(self.store):
            store = Store.open(self.store, complete=False)
            for expert in range(store.num_experts):
                for path in (store.expert_path(expert), store.checkpoint_path(expert)):
                    if path.exists():
                        files.load_tensors(path)
        config = self.distillation
        if config.checkpoint_path.exists():
            files.load_tensors(config.checkpoint_path)
        if config.out.exists():
            artifact.load(config.out)
        return sum(1 for _ in self.folder.glob("**/.trajmatch-*.tmp"))

    def results(self) -> dict[str, object]:
        """All that a finished run leaves, without times."""
        left: dict[str, object] = {
            str(path.relative_to(self.folder)): path.read_bytes()
            for path in self.folder.glob("**/*")
            if path.is_file() and ".trajmatch-" not in str(path)
        }
        log = left.pop(self.distillation.log_path.name)
        assert isinstance(log, bytes)
        lines = [json.loads(line) for line in log.splitlines()]
        return {**left, "log": [{**line, "seconds": None} for line in lines]}


def kill_runs(config: KillConfig, folder: Path) -> Findings:
    """Kills and resumes runs until there were enough kills.

    Args:
        config: How many, and when.
        folder: Where the runs go.
    """
    data = write_data(folder / "images.npz")
    alone, draws, findings = Run(folder / "alone", data), random.Random(config.seed), Findings()
    alone.folder.mkdir()
    took = {part: finish(part, alone) for part in PARTS}
    wanted = alone.results()
    while findings.kills.total() < config.kills and not findings.losses:
        run = Run(folder / f"run{findings.runs}", data)
        run.folder.mkdir()
        try:
            for part in PARTS:
                while findings.kills.total() < config.kills:
                    if not killed(lambda part=part, run=run: run.do(part), draws, took[part]):
                        break
                    findings.kills[part] += 1
                    findings.unfinished += run.check() > 0
                    clear_unfinished(run.folder)
                finish(part, run)
        except UserError as error:
            findings.losses.append(str(error))
            break
        findings.runs += 1
        found = run.results()
        findings.losses += [
            f"{name} differs in {run.folder.name}"
            for name in sorted(found.keys() | wanted.keys())
            if found.get(name) != wanted.get(name)
        ]
    return findings


def finish(part: str, run: Run) -> float:
    """Does a part to its end in a process of its own; returns the seconds it took."""
    began = time.perf_counter()
    process = forked(lambda: run.do(part))
    _, status = os.waitpid(process, 0)
    if status:
        raise UserError(f"{part} of {run.folder.name} failed with status {status}")
    return time.perf_counter() - began


def killed(work: Callable[[], None], draws: random.Random, most: float) -> bool:
    """Kills a process that does some work after a random part of a time; False: it was done."""
    process = forked(work)
    time.sleep(draws.uniform(0, 0.7 * most))
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    if status and os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
        raise UserError(f"a process failed with status {status} before it was killed")
    return status != 0


def forked(work: Callable[[], None]) -> int:
    """A process that does some work, as soon as a fork can: importing torch takes seconds."""
    process = os.fork()
    if process:
        return process
    try:
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def clear_unfinished(folder: Path) -> None:
    """Makes unfinished files look as old as those that a later run removes."""
    for path in folder.glob("**/.trajmatch-*.tmp"):
        for each in (*path.iterdir(), path):
            os.utime(each, (0, 0))


def write_data(path: Path) -> str:
    """Writes 24 images of three classes; returns the URI."""
    draws = np.random.default_rng(0)
    labels = np.arange(24) % 3
    images = draws.integers(0, 120, (24, 8, 8, 1), dtype=np.uint8)
    images[np.arange(24), 2 * labels] += 100
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, x_train=images, y_train=labels, x_test=images[:9], y_test=labels[:9])
    return f"npz:{path}"


def main() -> int:
    """Runs the program; returns its exit status."""
    config = parse(KillConfig, sys.argv[1:], "benchmarks/kill_runs.py")
    torch.set_num_threads(1)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        findings = kill_runs(config, Path(folder))
    for loss in findings.losses:
        print(loss, file=sys.stderr)
    print(f"{findings.line()}, {time.perf_counter() - began:.0f} s")
    return 1 if findings.losses else 0


if __name__ == "__main__":
    sys.exit(main())
