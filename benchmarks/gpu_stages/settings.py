"""The stages of gpu_check.py, with their arguments and their results."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

SOURCE = Path(__file__).resolve().parents[2]

#: Exit status of a stage that had nothing to run; test harnesses know the number.
NOT_RUN = 77


class Stage(NamedTuple):
    """A stage: the module of this package that does it, and the longest it may take."""

    module: str
    seconds: float


#: In this order: what later stages need, then what is worth most when time runs out. The limits are
#: for stages that hang: all together took about half as long on an H200.
STAGES = {
    "machine": Stage("machine", 20),
    "build": Stage("build", 150),
    "doctor": Stage("doctor", 30),
    "agreement": Stage("agreement", 40),
    "own_kernels": Stage("own_kernels", 30),
    "tests": Stage("device_tests", 150),
    "profile": Stage("step_profile", 30),
    "first_layer": Stage("first_layer", 20),
    "cudnn": Stage("cudnn_settings", 40),
    "out_of_memory": Stage("out_of_memory", 30),
    "distill": Stage("real_distill", 60),
    "pixels": Stage("outer_iteration", 50),
    "two_devices": Stage("two_devices", 30),
    "memcheck": Stage("sanitizer", 30),
    "memcheck_own": Stage("sanitizer", 40),
    "initcheck": Stage("sanitizer", 40),
    "synccheck": Stage("sanitizer", 40),
    "racecheck": Stage("sanitizer", 40),
    "ceilings": Stage("ceilings", 20),
    "expert_step": Stage("expert_step", 30),
    "side_by_side": Stage("side_by_side", 30),
    "outer_iteration": Stage("outer_iteration", 200),
}


@dataclass(frozen=True)
class Settings:
    """Arguments of a stage; JSON can hold them.

    Attributes:
        stage: Its name.
        device: ``"cuda"`` or ``"cpu"``.
        quick: True for the smallest sizes, to try the program itself.
        installed: True to use the trajmatch that Python finds, instead of building one.
        root: Where trajmatch is imported from: the scratch folder, or the source tree.
    """

    stage: str
    device: str
    quick: bool
    installed: bool
    root: str


class NotRun(Exception):
    """A stage has nothing to run here; the message says why."""


class Record:
    """The result of a stage, on disk after every entry: a stage that is stopped leaves some.

    Attributes:
        content: What was found, and ``faults``, the reasons why the stage failed.
        folder: Where a stage may put files; it is removed in the end.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.folder = path.parent
        self.content: dict[str, Any] = {"faults": []}
        self._save()

    def put(self, name: str, value: Any) -> None:
        """Add an entry, as JSON can hold it."""
        self.content[name] = value
        self._save()

    def fault(self, reason: str) -> None:
        """Add a reason why the stage failed; it goes on."""
        print(f"FAULT: {reason}", flush=True)
        self.content["faults"].append(reason)
        self._save()

    def _save(self) -> None:
        # JSON has no NaN: it becomes a word
        content = json.loads(json.dumps(self.content), parse_constant=str)
        unfinished = self._path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(content))
        os.replace(unfinished, self._path)
