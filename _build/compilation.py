"""Compiles several files at a time, and only those that changed."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path


class CompileError(Exception):
    """A compiler said no. The message is what it printed."""


@dataclass(frozen=True)
class Job:
    """One source file, the object file it becomes, and the compiler with its flags."""

    source: Path
    object: Path
    compiler: tuple[str, ...]

    @property
    def command(self) -> list[str]:
        """What is run; g++ and nvcc take the same flags here.

        The object has a name of its own until it is whole, so that two builds in one tree do not
        disturb each other.
        """
        unfinished = f"{self.object}.{os.getpid()}"
        dependencies = ["-MD", "-MF", str(self.object.with_suffix(".d"))]
        return [*self.compiler, *dependencies, "-c", str(self.source), "-o", unfinished]

    @property
    def is_current(self) -> bool:
        """Whether the object is newer than all it was made from, and was made in the same way."""
        try:
            made = self.object.stat().st_mtime
            if self.object.with_suffix(".cmd").read_text() != shlex.join(self.compiler):
                return False
            rule = self.object.with_suffix(".d").read_text()
            prerequisites = rule.replace("\\\n", " ").partition(": ")[2].split()
            return all(os.stat(path).st_mtime < made for path in (str(self.source), *prerequisites))
        except FileNotFoundError:
            return False


def compile_changed(jobs: Sequence[Job]) -> None:
    """Brings all objects up to date, ``MAX_JOBS`` (else one a processor) at a time.

    Raises:
        CompileError: A source does not compile. The others have been tried.
    """
    stale = [job for job in jobs if not job.is_current]
    workers = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        errors = [error for error in pool.map(_compile, stale) if error]
    if errors:
        raise CompileError("\n".join(errors))


def run(command: Sequence[str]) -> str:
    """Runs a compiler and returns what it printed.

    Raises:
        CompileError: It failed or does not exist.
    """
    try:
        answer = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    except OSError as error:
        raise CompileError(f"{command[0]}: {error.strerror}") from error
    if answer.returncode != 0:
        raise CompileError(f"{shlex.join(command)}\n{answer.stdout}")
    return answer.stdout


def _compile(job: Job) -> str | None:
    job.object.parent.mkdir(parents=True, exist_ok=True)
    unfinished = job.command[-1]
    started = time.time()
    sys.stdout.write(f"compiling {job.source}\n")  # in one piece, among other threads
    try:
        warnings = run(job.command)
    except CompileError as error:
        return str(error)
    if warnings:
        print(warnings, flush=True)
    job.object.with_suffix(".cmd").write_text(shlex.join(job.compiler))
    os.utime(unfinished, (started, started))  # what was edited meanwhile counts as newer
    os.replace(unfinished, job.object)
    return None
