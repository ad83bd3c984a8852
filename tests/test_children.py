"""Child processes: their imports, their private channel, and every way in which they end."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

import trajmatch
from trajmatch import interruption
from trajmatch.children import children
from trajmatch.errors import UserError

FUNCTIONS = """
import os
import signal
import stat
import subprocess
import sys
import time

from trajmatch.errors import UserError


def imports(job, emit):
    import trajmatch
    import zipped

    flags = [sys.flags.isolated, sys.flags.no_site, sys.flags.optimize]
    emit({"path": sys.path, "files": [trajmatch.__file__, zipped.__file__], "flags": flags})


def prints(job, emit):
    for number in range(job["count"]):
        print("{}")
        os.write(1, b"a line that is no event\\n")
        subprocess.run(["echo", "from a program"])
        emit({"number": number, "text": "x" * job["size"]})


def leaves_a_process(job, emit):
    if os.fork() == 0:
        time.sleep(20)
        os._exit(0)
    emit({})


def fails(job, emit):
    emit({})
    exec(job["code"])


def breaks(job, emit):
    for descriptor in range(3, 100):
        if os.path.exists(f"/proc/self/fd/{descriptor}") and stat.S_ISSOCK(
            os.fstat(descriptor).st_mode
        ):
            os.write(descriptor, b"\\0\\0\\0\\1x")
    time.sleep(60)


def waits(job, emit):
    emit({"pid": os.getpid()})
    time.sleep(60)
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of functions for children, from a folder that is on sys.path."""
    folder = tmp_path / "functions"
    folder.mkdir()
    (folder / "functions_of_children.py").write_text(FUNCTIONS)
    with zipfile.ZipFile(folder / "modules.zip", "w") as archive:
        archive.writestr("zipped.py", "")
    for entry in (folder / "missing", folder / "modules.zip", folder):
        monkeypatch.syspath_prepend(str(entry))
    module = importlib.import_module("functions_of_children")
    monkeypatch.delitem(sys.modules, "functions_of_children")
    return module


def test_imports_are_those_of_the_parent(
    functions: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Modules of the current folder are not imported, unless the parent has it on its path."""
    clone = tmp_path / "clone"
    (clone / "trajmatch").mkdir(parents=True)
    (clone / "trajmatch" / "__init__.py").write_text("raise SystemExit('of the clone')")
    (clone / "random.py").write_text("raise SystemExit('of the current folder')")
    monkeypatch.chdir(clone)
    monkeypatch.delenv("PYTHONSAFEPATH")
    before = sys.path
    for path in (before, [*before, ""]):
        monkeypatch.setattr(sys, "path", [*path, Path("no text")])
        with children(functions.imports, [{}]) as events:
            (found,) = events
        assert found["path"] == path
        assert found["files"][0] == trajmatch.__file__
        assert "modules.zip" in found["files"][1]


@pytest.mark.parametrize("flags", [["-I"], ["-S", "-O"]])
def test_flags_are_those_of_the_parent(functions: Any, flags: list[str]) -> None:
    program = f"""
import sys
sys.path[:] = {sys.path!r}
from functions_of_children import imports
from trajmatch.children import children
with children(imports, [{{}}]) as events:
    (found,) = events
    assert found["path"] == sys.path
    print(found["flags"] == [sys.flags.isolated, sys.flags.no_site, sys.flags.optimize])
"""
    command = [sys.executable, *flags, "-c", program]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "True\n"


def test_what_is_printed_is_no_event(
    functions: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text("print('cluster profile loaded')")
    monkeypatch.setenv("PYTHONPATH", str(site))
    with children(functions.prints, [{"count": 3, "size": 300_000}] * 2) as events:
        numbers = [event["number"] for event in events if len(event["text"]) == 300_000]
    assert sorted(numbers) == [0, 0, 1, 1, 2, 2]
    out, err = capfd.readouterr()
    assert out == ""
    for text, times in (("cluster profile loaded", 2), ("no event", 6), ("from a program", 6)):
        assert err.count(text) == times


def test_a_process_that_a_child_leaves_behind_is_not_waited_for(functions: Any) -> None:
    began = time.monotonic()
    with children(functions.leaves_a_process, [{}]) as events:
        assert [*events] == [{}]
    assert time.monotonic() - began < 15


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("raise SystemExit(3)", 3),
        ("1 / 0", 1),
        ("os._exit(4)", 4),
        ("os.kill(os.getpid(), signal.SIGKILL)", -9),
        ("os.closerange(3, 100); os._exit(5)", 5),
    ],
)
def test_a_child_that_fails_is_an_error(functions: Any, code: str, status: int) -> None:
    with children(functions.fails, [{"code": code}]) as events:
        assert next(events) == {}
        with pytest.raises(subprocess.CalledProcessError) as failure:
            next(events)
    assert failure.value.returncode == status


def test_mistakes_of_the_user_come_back(functions: Any) -> None:
    job = {"code": "raise UserError('größe should be 1')"}
    with children(functions.fails, [job]) as events:
        next(events)
        with pytest.raises(UserError, match=r"^größe should be 1$"):
            next(events)


def test_what_is_not_an_event_ends_the_run(functions: Any) -> None:
    with children(functions.breaks, [{}]) as events, pytest.raises(ValueError, match="Expecting"):
        next(events)


def ended(pid: int) -> bool:
    """True if a process is gone, or will be within seconds."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_children_end_with_the_context_and_when_the_time_is_up(
    functions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with children(functions.waits, [{}] * 2) as events:
        pids = [next(events)["pid"], next(events)["pid"]]
        monkeypatch.setattr(interruption, "remaining", lambda: 0.0)
        with pytest.raises(interruption.Interrupted):
            next(events)
    assert all(map(ended, pids))


def test_children_end_with_their_parent(functions: Any) -> None:
    program = f"""
import sys
sys.path[:] = {sys.path!r}
import os
from functions_of_children import waits
from trajmatch.children import children
with children(waits, [{{}}]) as events:
    print(next(events)["pid"], flush=True)
    os.kill(os.getpid(), 9)
"""
    command = [sys.executable, "-c", program]
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended(int(killed.stdout))
