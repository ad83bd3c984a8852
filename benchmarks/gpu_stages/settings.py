"""The stages of gpu_check.py, with their arguments and their results."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

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
    "pixels": Stage("pixels", 50),
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
    """What a stage is told.

    Attributes:
        stage: Its name.
        device: ``"cuda"`` or ``"cpu"``.
        quick: Whether the smallest sizes do, to try the program itself.
        installed: Whether the trajmatch that Python finds is used, instead of building one.
        source: The source tree.
        root: Where trajmatch is imported from: the scratch folder, or ``source``.
    """

    stage: str
    device: str
    quick: bool
    installed: bool
    source: Path
    root: Path

    def to_json(self) -> str:
        """One line that :meth:`from_json` takes."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """The settings of :meth:`to_json`."""
        values = json.loads(text)
        return cls(**{**values, "source": Path(values["source"]), "root": Path(values["root"])})


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
        """Adds an entry, as JSON can hold it."""
        self.content[name] = value
        self._save()

    def fault(self, reason: str) -> None:
        """Adds a reason why the stage failed; it goes on."""
        print(f"FAULT: {reason}", flush=True)
        self.content["faults"].append(reason)
        self._save()

    def _save(self) -> None:
        unfinished = self._path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(_as_json(self.content), allow_nan=False))
        os.replace(unfinished, self._path)


def _as_json(value: Any) -> Any:
    """The value with words in place of numbers that JSON has none for."""
    if isinstance(value, dict):
        return {name: _as_json(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
