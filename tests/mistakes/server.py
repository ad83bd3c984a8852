"""A process that has imported the program, and forks for each mistake: no time goes to imports.

It reads a request of JSON from a line of the standard input, and answers with a line: the exit
status, or null where the limit was passed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from typing import Any

import numpy  # noqa: F401
import torch  # noqa: F401

import trajmatch
import trajmatch.cli.main


def _run_command(arguments: list[str]) -> None:
    """Do what the console script does."""
    sys.argv = arguments
    sys.exit(trajmatch.cli.main.main())


def _run_source(path: str) -> None:
    """Run a program, and write what it raises to ``answer.json``."""
    with open(path, encoding="utf-8") as file:
        source = file.read()
    sys.path.insert(0, "")
    answer = None
    try:
        exec(compile(source, path, "exec"), {"__name__": "__main__"})
    except BaseException as error:
        names = [kind.__name__ for kind in type(error).__mro__]
        answer = {"class": names[0], "bases": names, "message": str(error)}
        print(f"{names[0]}: {error}", file=sys.stderr)
    with open("answer.json", "w", encoding="utf-8") as file:
        json.dump(answer, file)


def _child(request: dict[str, Any]) -> None:
    """Take the place of a process that was started in the folder, with its output in two files."""
    os.setsid()
    os.chdir(request["folder"])
    for number, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, request["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND),
        (2, request["err"], os.O_WRONLY | os.O_CREAT | os.O_APPEND),
    ):
        opened = os.open(path, flags, 0o644)
        os.dup2(opened, number)
        os.close(opened)
    if request.get("path"):
        sys.path.insert(0, os.path.abspath(request["path"]))
        os.environ["PYTHONPATH"] = request["path"]
    try:
        if "source" in request:
            _run_source(request["source"])
        else:
            _run_command(request["arguments"])
        status = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            status = 1
        else:
            status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        status = 1
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status & 0xFF)


def _wait(process: int, limit: float) -> int | None:
    """Wait for a process, and end it and its children after the limit."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        ended, code = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(code)
        time.sleep(0.01)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return None


def main() -> None:
    """Answer requests until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        process = os.fork()
        if process == 0:
            _child(request)
        answers.write(json.dumps(_wait(process, request["limit"])) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
