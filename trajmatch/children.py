"""Child processes that run a function of this package and send events to the parent.

A child has the parent's interpreter flags, environment, ``sys.path`` and trajmatch package. Job
and events are JSON on a socket; everything the child prints goes to stderr.
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

#: Interval in seconds to poll for children that exited while their connection stays open.
_LOOK = 1.0

# Import only the built-in module sys before sys.path is set.
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
    """Unexpected exit of a child process; its traceback is on stderr.

    Attributes:
        status: Exit status; if negative, the number of the signal that killed it.
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
    """Run a function in child processes; leaving the context terminates them.

    The children are new programs: a fork of a process with threads may hang, and a
    ``multiprocessing`` child would run the caller's script again. Each has its own session: ctrl-C
    reaches only this process, which then sends them SIGTERM.

    Args:
        function: Module-level function ``function(job, emit)`` of this package.
        jobs: One job for each child, as JSON values.
        environment: Extra environment variables for the children.

    Yields:
        An iterator over the events of all children until all have ended. It raises
        :class:`UserError` if a child raised it, :class:`Failed` if a child failed otherwise, and
        :class:`~trajmatch.interruption.Interrupted` if the run should stop.
    """
    with contextlib.ExitStack() as stack:
        running = {}
        for job in jobs:
            connection, process = stack.enter_context(_started(function, job, environment))
            running[connection] = process
        for process in running.values():  # terminate all before _started waits for any
            stack.callback(process.terminate)
        yield _events(running)


@contextlib.contextmanager
def _started(
    function: Callable[[Job, Emit], None], job: Job, environment: Mapping[str, str]
) -> Iterator[tuple[Connection, subprocess.Popen[bytes]]]:
    """Start a child and send it its job; terminate it when the context exits."""
    ours, theirs = Pipe()
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    arguments = [trajmatch.__file__, str(theirs.fileno()), function.__module__, function.__name__]
    path = [entry for entry in sys.path if isinstance(entry, str)]  # imports skip other types
    with ours:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, *flags, "-c", _PROGRAM, *arguments, *path],
                stdin=subprocess.DEVNULL,
                stdout=2,
                env={**os.environ, **environment},
                pass_fds=[theirs.fileno(), *lock.held()],  # the child holds the locks too
                start_new_session=True,
            )
        try:
            with contextlib.suppress(ConnectionError):  # it ended at once: see its exit status
                ours.send_bytes(json.dumps(job).encode())
            yield ours, process
        finally:
            process.terminate()
            process.wait()


def _events(running: dict[Connection, subprocess.Popen[bytes]]) -> Iterator[Event]:
    """Yield the events of the children until all have ended."""
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
        if not ready:  # a grandchild may hold the connection of an exited child open
            for connection, process in running.items():
                if process.poll() is not None and not connection.poll():
                    ended.append(connection)
        for connection in ended:
            if status := running.pop(connection).wait():
                raise Failed(status)


def main(descriptor: int, module: str, name: str) -> int:
    """Run the function of a child process (see :func:`children`) and return the exit status."""
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
    """Send this process SIGTERM when the parent closes its end of the connection."""
    with contextlib.suppress(EOFError, OSError):
        connection.recv_bytes()
    os.kill(os.getpid(), signal.SIGTERM)
