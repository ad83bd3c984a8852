"""Make every mistake of the list, and say how the program answers.

    python tests/mistakes/run.py                       all of them
    python tests/mistakes/run.py no-such-data 'npz-*'  some of them
    python tests/mistakes/run.py --output 'npz-*'      with all that was printed

Exit status 1 says that some answer was bad.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import os
import queue
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mistakes import setups
from mistakes.by_newcomers import MISTAKES
from mistakes.kinds import Call, Command, Mistake

LIMIT = 60.0
"""Seconds after which a command has not answered."""

GOOD_EXCEPTIONS = {
    "UserError",
    "ValueError",
    "TypeError",
    "NotImplementedError",
    "FrozenInstanceError",
}
"""Classes of exceptions that tell a caller that the call was wrong."""

JARGON = (
    r"invalid literal for|could not convert string|has no attribute|list index|index out of range"
    r"|not subscriptable|not iterable|unsupported operand|not supported between|object at 0x"
    r"|\[Errno|UnpicklingError|size mismatch|dtype number|torch_call_dispatcher|Facebook"
    r"|tensor\(\[|codec can't|Segmentation|core dumped|torch\._C|must match the size of tensor"
)
"""Words of messages of Python or torch that are not for the user."""

JARGON_OF_COMMANDS = JARGON + r"|NoneType|<class '"
"""The same for those who did not write Python."""

_setup_lock = threading.Lock()  # the current folder belongs to the process


@dataclass(frozen=True)
class Result:
    """How the program answered a mistake.

    Attributes:
        name: That of the mistake.
        status: Exit status of the process, or None where it did not end in time.
        traceback: Whether a traceback of Python was printed.
        message: Whether the standard error stream has one clear message.
        seconds: How long it took.
        exception: Of a call, the class of what was raised.
        complaints: What is bad about the answer; empty where it is good.
        output: All that was printed, and the exception.
    """

    name: str
    status: int | None
    traceback: bool
    message: bool
    seconds: float
    exception: str | None
    complaints: tuple[str, ...]
    output: str

    def line(self) -> str:
        """One line of the table."""
        status = "late" if self.status is None else str(self.status)
        traceback = "traceback" if self.traceback else "-"
        message = "message" if self.message else "-"
        told = self.exception or "-"
        verdict = "; ".join(self.complaints) if self.complaints else "good"
        return (
            f"{self.name:38} {status:>4}  {traceback:9}  {message:7}  {self.seconds:5.1f} s"
            f"  {told:20}  {verdict}"
        )


def _environment(changes: dict[str, str | None]) -> dict[str, str]:
    environment = dict(os.environ)
    path = environment.get("PATH", "")
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), path])
    environment.setdefault("OMP_NUM_THREADS", "1")
    environment.pop("TRAJMATCH_DATA", None)
    environment.pop("COLUMNS", None)
    for key, value in changes.items():
        if value is None:
            environment.pop(key, None)
        elif key == "PYTHONPATH" and environment.get(key):
            environment[key] = os.pathsep.join([value, environment[key]])
        else:
            environment[key] = value
    return environment


def _without_privileges(command: Sequence[str]) -> list[str]:
    """The command with permissions of files respected, where root runs it."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        return list(command)
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]


def _execute(
    command: Sequence[str], folder: Path, changes: dict[str, str | None]
) -> tuple[int | None, str, str]:
    process = subprocess.Popen(
        _without_privileges(command),
        cwd=folder,
        env=_environment(changes),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=LIMIT)
        return process.returncode, out, err
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        return None, out, err


class Server:
    """A process that has imported the program, and makes one mistake after another."""

    def __init__(self) -> None:
        command = [sys.executable, str(Path(__file__).with_name("server.py"))]
        self._process = subprocess.Popen(
            _without_privileges(command),
            cwd="/",
            env=_environment({"PYTHONSAFEPATH": "1"}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def execute(self, folder: Path, request: dict[str, object]) -> tuple[int | None, str, str]:
        """Make a mistake: status or None, and what was printed on the two streams."""
        paths = [folder.with_name(folder.name + ending) for ending in (".out", ".err")]
        for path in paths:
            path.touch()
        places = {"folder": str(folder), "out": str(paths[0]), "err": str(paths[1])}
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({**request, **places, "limit": LIMIT}) + "\n")
        self._process.stdin.flush()
        status = json.loads(self._process.stdout.readline())
        out, err = (path.read_text(encoding="utf-8", errors="replace") for path in paths)
        for path in paths:
            path.unlink()
        return status, out, err

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def prepare(folder: Path) -> None:
    """Make the good inputs, from arrays and pictures to a store and a distilled set.

    ``half`` is a store, and ``i.safetensors`` a distillation, whose making was interrupted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _setup_lock, contextlib.chdir(folder):
        setups.arrays("d.npz")()
        setups.photos()()
    network = "--width 16 --depth 2 --batch-size 8 --workers 1 --quiet"
    student = "--experts experts --student-steps 2 --expert-epochs 1 --max-start-epoch 1 --quiet"
    steps = [
        (
            f"trajmatch expert --data npz:d.npz --out experts --num-experts 1 --epochs 2 {network}",
            0,
        ),
        (f"trajmatch distill {student} --out d.safetensors --iterations 2", 0),
        (
            f"trajmatch expert --data npz:d.npz --out half --num-experts 1 --epochs 20000 {network}"
            " --keep 0-1 --max-time 2s",
            75,
        ),
        (
            f"trajmatch distill {student} --out i.safetensors --iterations 10000000 --max-time 2s",
            75,
        ),
    ]
    for line, wanted in steps:
        status, out, err = _execute(["bash", "-c", line], folder, {})
        if status != wanted:
            raise RuntimeError(f"{line} ended with {status}, not {wanted}:\n{out}{err}")


def _without_torchrun(text: str) -> str:
    """The text without the traceback that torchrun itself prints when a process of it fails."""
    block = r"Traceback \(most recent call last\):\n(?: .*\n)*.*ChildFailedError"
    return re.sub(block, "", text)


def _messages(text: str) -> int:
    """Count the error messages: lines of the program, or boxes of its parser."""
    lines = re.findall(r"^trajmatch: (?:error:|stopped by) \S.*", text, flags=re.MULTILINE)
    boxes = re.findall(r"^(?:╭─|\+-) [A-Z].*\n.*", text, flags=re.MULTILINE)
    usage = re.findall(r"^usage: trajmatch", text, flags=re.MULTILINE)
    plain = re.findall(r"^ ?[A-Z][a-z ]+\n[ -]-{20,}", text, flags=re.MULTILINE)
    return len({*lines, *boxes, *plain, *usage})


def _flat(text: str) -> str:
    """The text in one line and small letters, frames of boxes left out, to look for words in."""
    return re.sub(r"[\s│╭╮╰╯─]+", " ", text).lower()


def _missing(expects: Sequence[str], text: str) -> list[str]:
    flat, tight = _flat(text), re.sub(r"\s", "", _flat(text))
    return [w for w in expects if w.lower() not in flat and w.lower().replace(" ", "") not in tight]


def _judge_command(mistake: Command, status: int | None, out: str, err: str) -> Iterator[str]:
    text = _without_torchrun(out + err)
    if status is None:
        yield f"no answer in {LIMIT:.0f} s"
        return
    if "Traceback (most recent call last)" in text:
        yield "traceback"
    if status < 0 or status in (126, 127, 134, 136, 139):
        yield f"killed or not started, status {status}"
    if status == 0:
        if mistake.outcome == "refused":
            yield "not noticed"
        elif mistake.outcome == "told" and "trajmatch: warning:" not in err:
            yield "no warning"
    elif mistake.outcome == "works":
        yield "refused"
    if status == 0 and mistake.outcome in ("refused", "either"):
        return
    jargon = re.search(JARGON_OF_COMMANDS, text)
    if jargon:
        yield f"jargon: {jargon.group()}"
    messages = _messages(_without_torchrun(err)) + len(re.findall(r"^damaged ", out, re.MULTILINE))
    if status != 0 and messages != 1:
        yield f"{messages} messages"
    missing = _missing(mistake.expects, text)
    if missing:
        yield "does not say " + ", ".join(missing)
    for words in mistake.forbids:
        if words in text:
            yield f"says {words}"


def _inventory(folder: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of every file below the folder; of folders only that they are there."""
    return {
        path: (-1, 0) if path.is_dir() else (path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.exists()
    }


def _touched(folder: Path, before: dict[Path, tuple[int, int]]) -> list[str]:
    """Files that a refused command changed, and folders that it put something into."""
    after = _inventory(folder)
    changed = [path for path in before if before[path] != after.get(path)]
    added = [path for path in after if path not in before and path.parent in before]
    return sorted(str(path.relative_to(folder)) for path in changed + added)


def _judge_call(
    mistake: Call, status: int | None, answer: dict[str, object] | None, answered: bool
) -> Iterator[str]:
    if status is None:
        yield f"no answer in {LIMIT:.0f} s"
    elif not answered:
        yield f"the process died, status {status}"
    elif answer is None:
        if mistake.outcome == "refused":
            yield "not noticed"
    elif answer["class"] == "AssertionError" and mistake.outcome != "refused":
        yield "the result is nonsense"
    else:
        bases = answer["bases"]
        assert isinstance(bases, list)
        message = str(answer["message"])
        if mistake.outcome == "works":
            yield "refused"
        if answer["class"] not in GOOD_EXCEPTIONS and "OSError" not in bases:
            yield "exception from inside"
        jargon = re.search(JARGON, message)
        if jargon:
            yield f"jargon: {jargon.group()}"
        missing = _missing(mistake.expects, message)
        if missing:
            yield "does not say " + ", ".join(missing)


def _writable(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)


def _plain(mistake: Command) -> bool:
    """True if the command needs neither a shell nor a process of its own."""
    if mistake.own_process or not isinstance(mistake.line, str):
        return False
    if set(mistake.environment) - {"PYTHONPATH"}:
        return False
    unquoted = re.sub(r"'[^']*'", "", mistake.line)
    return mistake.line.startswith("trajmatch") and not re.search(
        r"[][|&;<>$`\"*?~#()\\]", unquoted
    )


def attempt(mistake: Mistake, prepared: Path, parent: Path, server: Server) -> Result:
    """Make one mistake in a folder of its own, and judge the answer."""
    folder = parent / mistake.name
    shutil.copytree(prepared, folder, symlinks=True)
    if mistake.setup is not None:
        with _setup_lock, contextlib.chdir(folder):
            mistake.setup()
    before = _inventory(folder)
    begin = time.monotonic()
    exception = None
    if isinstance(mistake, Command):
        if _plain(mistake):
            words = shlex.split(str(mistake.line))
            status, out, err = server.execute(
                folder, {"arguments": words, "path": mistake.environment.get("PYTHONPATH")}
            )
        else:
            shell = isinstance(mistake.line, str)
            command = ["bash", "-c", str(mistake.line)] if shell else list(mistake.line)
            status, out, err = _execute(command, folder, dict(mistake.environment))
        complaints = tuple(_judge_command(mistake, status, out, err))
        touched = _touched(folder, before)
        if touched and mistake.outcome == "refused" and status:
            complaints = (*complaints, "touched " + ", ".join(touched[:3]))
    else:
        (folder / "mistake.py").write_text(mistake.source, encoding="utf-8")
        status, out, err = server.execute(folder, {"source": "mistake.py"})
        path = folder / "answer.json"
        answer = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        exception = str(answer["class"]) if answer else None
        complaints = tuple(_judge_call(mistake, status, answer, path.exists()))
    seconds = time.monotonic() - begin
    _writable(folder)
    shutil.rmtree(folder)
    text = _without_torchrun(out + err)
    return Result(
        mistake.name,
        status,
        "Traceback (most recent call last)" in text,
        _messages(err) == 1,
        seconds,
        exception,
        complaints,
        "\n".join(part.rstrip() for part in (out, err) if part.strip()),
    )


def _chosen(patterns: Sequence[str]) -> list[Mistake]:
    if not patterns:
        return list(MISTAKES)
    names = [mistake.name for mistake in MISTAKES]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise SystemExit(f"there is no mistake {pattern!r}")
    return [m for m in MISTAKES if any(fnmatch.fnmatch(m.name, p) for p in patterns)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the list, or the part of it that is named."""
    parser = argparse.ArgumentParser(description="make mistakes, and judge the answers")
    parser.add_argument("name", nargs="*", help="names of mistakes, or patterns such as 'npz-*'")
    parser.add_argument("--processes", type=int, default=2, help="mistakes at a time (2)")
    parser.add_argument("--output", action="store_true", help="show all that was printed")
    options = parser.parse_args(arguments)
    chosen = _chosen(options.name)
    begin = time.monotonic()
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="mistakes-") as top:
        prepared = Path(top, "prepared")
        prepare(prepared)
        parent = Path(top, "made")
        parent.mkdir()
        servers: queue.Queue[Server] = queue.Queue()
        for _ in range(options.processes):
            servers.put(Server())

        def make(mistake: Mistake) -> Result:
            server = servers.get()
            try:
                return attempt(mistake, prepared, parent, server)
            finally:
                servers.put(server)

        with ThreadPoolExecutor(options.processes) as pool:
            for result in pool.map(make, chosen):
                print(result.line(), flush=True)
                if options.output:
                    print("    " + result.output.replace("\n", "\n    "), flush=True)
                results.append(result)
        while not servers.empty():
            servers.get().close()
    bad = [result for result in results if result.complaints]
    print(f"{len(results)} mistakes, {len(bad)} bad, {time.monotonic() - begin:.0f} s")
    for result in bad:
        print(f"  {result.name}: {'; '.join(result.complaints)}")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
