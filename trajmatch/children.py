"""Child processes that run a function of this package and send events to the parent.

A child has the parent's interpreter flags, environment, ``sys.path`` and trajmatch package. Its job
(the argument of the function) and its events are sent as JSON over a socket. Everything that a
child prints goes to stderr.
"""

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

#: Interval in seconds at which to look for children that ended although their connection is open.
_LOOK = 1.0

# Program of a child. It imports only the built-in module sys before it sets sys.path.
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


@contextlib.contextmanager
def children(
    function: Callable[[Job, Emit], None],
    jobs: Sequence[Job],
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Iterator[Event]]:
    """Run a function in child processes; leaving the context terminates them.

    ``function(job, emit)`` is a module-level function of this package. Each child gets one of
    ``jobs``, which are JSON values, and the additional environment variables ``environment``.

    Yields:
        An iterator over the events of all children until all have ended. It raises
        :class:`UserError` if a child raised it, :class:`subprocess.CalledProcessError` if a child
        failed otherwise, and :class:`~trajmatch.interruption.Interrupted` if the run should stop.
    """
    with contextlib.ExitStack() as stack:
        running = dict(stack.enter_context(_started(function, job, environment)) for job in jobs)
        # Callbacks run last in, first out: all children get SIGTERM before _started waits for one.
        for process in running.values():
            stack.callback(process.terminate)
        yield _events(running)


@contextlib.contextmanager
def _started(
    function: Callable[[Job, Emit], None], job: Job, environment: Mapping[str, str]
) -> Iterator[tuple[Connection, subprocess.Popen[bytes]]]:
    """Start a child process and send its job; terminate the process when the context exits."""
    # Start a new program, because a fork of a process with threads may hang and a child of
    # multiprocessing would run the caller's script again.
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
                # In its own session, the child gets no ctrl-C: the parent sends SIGTERM instead.
                start_new_session=True,
            )
        try:
            with contextlib.suppress(ConnectionError):  # the child has ended: see its exit status
                ours.send_bytes(json.dumps(job).encode())
            yield ours, process
        finally:
            process.terminate()
            process.wait()


def _events(running: dict[Connection, subprocess.Popen[bytes]]) -> Iterator[Event]:
    """Yield the events of the children until all have ended."""
    while running:
        interruption.check()
        # Wait until a message arrives, the time limit is up, or _LOOK seconds are over.
        left = interruption.remaining()
        ready = wait([*running], _LOOK if left is None else min(left, _LOOK))
        ended = []
        for connection in running.keys() & {*ready}:
            try:
                message = json.loads(connection.recv_bytes())
            except (EOFError, OSError):  # the child has closed its end
                ended.append(connection)
                continue
            if "error" in message:
                raise UserError(message["error"])
            yield message["event"]
        # A grandchild may hold the connection of an ended child open, so look at the process too.
        if not ready:
            ended = [c for c, child in running.items() if child.poll() is not None and not c.poll()]
        for connection in ended:
            if status := running.pop(connection).wait():
                raise subprocess.CalledProcessError(status, sys.executable)


def main(descriptor: int, module: str, name: str) -> int:
    """Run a function in this child process and return the exit status; see :func:`children`.

    ``descriptor`` is the socket to the parent; ``module`` and ``name`` identify the function.
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
    """Send this process SIGTERM when the parent closes its end of the connection."""
    with contextlib.suppress(EOFError, OSError):
        connection.recv_bytes()
    os.kill(os.getpid(), signal.SIGTERM)
