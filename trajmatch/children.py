"""Child processes that run a function of this package and report events.

A child has the interpreter flags, the environment and the ``sys.path`` of this process, and the
very package that this process imported. Its job and its events are JSON on a socket of their own.
What it prints, from its first line on, goes to the standard error stream.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, Pipe, wait
from types import MappingProxyType
from typing import Any

import trajmatch
from trajmatch import interruption, lock
from trajmatch.errors import UserError

Job = dict[str, Any]
Event = dict[str, Any]
Emit = Callable[[Event], None]

#: Seconds after which the end of a child is looked for that closed no connection.
_LOOK = 1.0

# Nothing but the built-in module sys is imported before sys.path is right.
_PROGRAM = """
import sys
package, descriptor, module, name, *sys.path[:] = sys.argv[1:]
del sys.argv[1:]
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("trajmatch", package)
sys.modules["trajmatch"] = module_from_spec(spec)
spec.loader.exec_module(sys.modules["trajmatch"])
from trajmatch.children import main
sys.exit(main(int(descriptor), module, name))
"""


class Failed(Exception):
    """The end of a child by an error that is not the user's; its traceback is on the error stream.

    Attributes:
        status: Its exit status; negative: the number of the signal that killed it.
    """

    def __init__(self, status: int) -> None:
        super().__init__(f"a child process ended with status {status}")
        self.status = status


@contextlib.contextmanager
def children(
    function: Callable[[Job, Emit], None],
    jobs: Sequence[Job],
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Iterator[Event]]:
    """Run a function in child processes, which end with the context at the latest.

    The children are programs rather than forks: a fork of a process that has started threads may
    hang, and a ``multiprocessing`` child would run the caller's script again. They are not in the
    terminal's process group: ctrl-C reaches this process only, which then ends them by SIGTERM.

    Args:
        function: A function of a module of this package; gets the job and what emits events.
        jobs: One for each child, as JSON can hold them.
        environment: Variables for the children, besides those of this process.

    Yields:
        The events of all children, until all have ended. The iterator raises :class:`UserError` if
        a child raised it, :class:`Failed` if a child ended otherwise, and
        :class:`~trajmatch.interruption.Interrupted` if the run is to stop.
    """
    with contextlib.ExitStack() as stack:
        running = {}
        for job in jobs:
            connection, process = stack.enter_context(_started(function, job, environment))
            running[connection] = process
        for process in running.values():  # all of them, before the first is waited for
            stack.callback(process.terminate)
        yield _events(running)


@contextlib.contextmanager
def _started(
    function: Callable[[Job, Emit], None], job: Job, environment: Mapping[str, str]
) -> Iterator[tuple[Connection, subprocess.Popen[bytes]]]:
    """A running child; leaving the context ends it, finished or not."""
    ours, theirs = Pipe()
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    arguments = [trajmatch.__file__, str(theirs.fileno()), function.__module__, function.__name__]
    path = [entry for entry in sys.path if isinstance(entry, str)]  # imports skip all others
    with ours:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, *flags, "-c", _PROGRAM, *arguments, *path],
                stdin=subprocess.DEVNULL,
                stdout=2,
                env={**os.environ, **environment},
                pass_fds=[theirs.fileno(), *lock.held()],  # locks outlive this process with it
                start_new_session=True,
            )
        try:
            with contextlib.suppress(ConnectionError):  # it ended at once: its status says so
                ours.send_bytes(json.dumps(job).encode())
            yield ours, process
        finally:
            process.terminate()
            process.wait()


def _events(running: dict[Connection, subprocess.Popen[bytes]]) -> Iterator[Event]:
    """The events of children until all have ended."""
    while running:
        interruption.check()
        left = interruption.remaining()
        ready = wait([*running], _LOOK if left is None else min(left, _LOOK))
        ended = []
        for connection in running.keys() & {*ready}:
            try:
                message = json.loads(connection.recv_bytes())
            except (EOFError, OSError):
                ended.append(connection)
                continue
            if "error" in message:
                raise UserError(message["error"])
            yield message["event"]
        if not ready:  # a process that a child has started may hold the child's connection open
            for connection, process in running.items():
                if process.poll() is not None and not connection.poll():
                    ended.append(connection)
        for connection in ended:
            if status := running.pop(connection).wait():
                raise Failed(status)


def main(descriptor: int, module: str, name: str) -> int:
    """Run the program of a child; see :func:`children`.

    Args:
        descriptor: The connection to the parent.
        module: Where the function is.
        name: The function.

    Returns:
        The exit status.
    """
    connection = Connection(descriptor)

    def send(message: dict[str, Any]) -> None:
        try:
            connection.send_bytes(json.dumps(message).encode())
        except ConnectionError:  # the parent is gone
            raise SystemExit(1) from None

    try:
        job = json.loads(connection.recv_bytes())
    except (EOFError, ConnectionError):
        return 1
    threading.Thread(target=_end_with_parent, args=(connection,), daemon=True).start()
    try:
        getattr(importlib.import_module(module), name)(job, lambda event: send({"event": event}))
    except interruption.Interrupted as stop:
        return stop.status
    except UserError as error:
        send({"error": error.in_flags})
        return 2
    return 0


def _end_with_parent(connection: Connection) -> None:
    """End this process as SIGTERM does when the parent's end of the connection closes."""
    with contextlib.suppress(EOFError, OSError):
        connection.recv_bytes()
    os.kill(os.getpid(), signal.SIGTERM)
