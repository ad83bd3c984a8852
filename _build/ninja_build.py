"""Compiles and links with ninja: only what changed, ``MAX_JOBS`` files at a time."""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from pathlib import Path

Words = Sequence[str | Path]


class BuildError(SystemExit):
    """A compiler or a linker failed, and ninja has printed why; ends the build unless caught."""


class NinjaBuild:
    """The files to make, and a folder for build.ninja and ninja's records.

    A file is made again when its command changes, or a source, or a header that a source includes.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        rule = "rule run\n  command = $command\n  description = making $out\n"
        self.text = f"builddir = {_escape(folder)}\n{rule}"

    def compile(self, target: Path, source: Path, compiler: Words) -> Path:
        """Add an object file; g++ and nvcc take the same flags for it."""
        command = [*compiler, "-MD", "-MF", f"{target}.d", "-c", source, "-o", target]
        return self._add(
            target, [source], command, f"  depfile = {_escape(target)}.d\n  deps = gcc\n"
        )

    def link(self, target: Path, objects: Sequence[Path], linker: Words, libraries: Words) -> Path:
        """Add a program or a shared library."""
        return self._add(target, objects, [*linker, *objects, "-o", target, *libraries])

    def run(self) -> None:
        """Make what is not current; one file a processor at a time without ``MAX_JOBS``.

        Raises:
            BuildError: A command failed. All that do not need its file have been run.
            SystemExit: There is no ninja.
        """
        ninja = find_ninja()
        if ninja is None:
            raise SystemExit("trajmatch is compiled with ninja, and finds none: pip install ninja")
        self.folder.mkdir(parents=True, exist_ok=True)
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        file = self.folder / "build.ninja"
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two builds in one folder follow one another
            file.write_text(self.text)
            if subprocess.run([ninja, "-f", file, "-j", jobs, "-k", "0"]).returncode != 0:
                raise BuildError("trajmatch cannot be built; the compiler's output is above")

    def _add(self, target: Path, sources: Sequence[Path], command: Words, more: str = "") -> Path:
        text = shlex.join(map(str, command)).replace("$", "$$")
        inputs = " ".join(map(_escape, sources))
        self.text += f"build {_escape(target)}: run {inputs}\n  command = {text}\n{more}"
        return target


def find_ninja() -> str | None:
    """The program ninja on the PATH or in this interpreter's environment."""
    places = [os.environ.get("PATH", os.defpath), sysconfig.get_path("scripts")]
    return shutil.which("ninja", path=os.pathsep.join(places))


def run(*command: str) -> tuple[int, str]:
    """The exit status and the output of a program; 127 and nothing where it cannot be started."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return 127, ""
    return answer.returncode, answer.stdout + answer.stderr


def write_if_changed(path: Path, text: str) -> None:
    """Writes a file that others are made of, unless it holds that already."""
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _escape(path: Path) -> str:
    return re.sub("[$: ]", r"$\g<0>", str(path))
