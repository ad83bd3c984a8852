"""Programs and modules that tests compile: by the build's ninja, and once for all clones."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from ninja_build import NinjaBuild, write_if_changed

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
EMULATOR = ROOT / "tests" / "emulator"

Part = tuple[Iterable[Path], Sequence[str]]  # sources, and the compiler with its flags


def compiled(name: str, parts: Sequence[Part], linker: Sequence[str], *libraries: str) -> Path:
    """The program that is made of some parts; of the cache, if the same was ever made here.

    The cache is ``TRAJMATCH_TEST_CACHE``, or a folder of the user's. A file in it is named after
    all that goes into it, and not used for a month it goes.
    """
    ninja = NinjaBuild(ROOT / "build" / "tests")
    objects = [
        ninja.compile(folder / f"{source.relative_to(ROOT)}.o", source, compiler)
        for sources, compiler in parts
        for folder in [ninja.folder / _digest(" ".join(compiler).encode())[:8]]
        for source in sources
    ]
    program = ninja.link(ninja.folder / name, objects, linker, libraries)
    cache = Path(os.environ.get("TRAJMATCH_TEST_CACHE", Path.home() / ".cache/trajmatch-tests"))
    kept = cache / f"{_digest(*_all_that_matters(ninja.text, linker[0]))[:16]}-{name}"
    if not kept.exists():
        ninja.run()
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = cache / f"{kept.name}.{os.getpid()}"
        shutil.copy(program, unfinished)
        unfinished.replace(kept)
    kept.touch()
    for other in cache.iterdir():
        if other.stat().st_mtime < time.time() - 30 * 86400:
            other.unlink(missing_ok=True)
    return kept


def together(name: str, sources: Iterable[Path]) -> Path:
    """One source of several, for those whose time goes into headers that all of them include."""
    joined = ROOT / "build" / "tests" / name
    write_if_changed(joined, "".join(f'#include "{source}"\n' for source in sources))
    return joined


def _all_that_matters(commands: str, compiler: str) -> Iterable[bytes]:
    """The commands without the names of folders, the versions, and the text of all sources."""
    yield commands.replace(str(ROOT), "").replace(sys.prefix, "").encode()
    yield torch.__version__.encode()
    yield subprocess.check_output([compiler, "--version"])
    for folder in (CSRC, EMULATOR):
        for path in sorted(folder.rglob("*")):
            if path.suffix in (".h", ".cpp", ".cuh", ".cu"):
                yield str(path.relative_to(ROOT)).encode()
                yield path.read_bytes()


def _digest(*texts: bytes) -> str:
    return hashlib.sha256(b"\0".join(texts)).hexdigest()
