"""The program ``trajmatch``, which imports only the modules that the chosen command needs."""

import contextlib
import errno
import importlib
import io
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pkgutil import resolve_name
from typing import Any, NamedTuple

from trajmatch import interruption
from trajmatch.errors import UserError, closest


class Command(NamedTuple):
    """A command; the function ``run(arguments)`` of its module returns the exit status or None."""

    help: str
    resumes: bool = False  # True if the command has the flag --resume
    divides: bool = False  # True if several processes of torchrun can share the work


#: Commands by name; the module of a command is ``trajmatch.cli.NAME``, unless it is in _CALLS.
COMMANDS = {
    "expert": Command("train experts on real images and keep their trajectories", True, True),
    "distill": Command("distil a few images per class from a store of experts", True, True),
    "eval": Command("train fresh networks on distilled images and test them", True),
    "store": Command("verify, list, trim, merge or convexify stores of experts"),
    "score": Command("score real images by how hard they are for experts (EL2N)"),
    "show": Command("draw distilled images as a picture or an animation"),
    "report": Command("write a report of a run as one HTML file"),
    "convert": Command("convert between files of the papers' scripts and of trajmatch"),
    "export": Command("write distilled images in a form that other programs read"),
    "push": Command("upload a distilled set or an expert store to the Hugging Face hub"),
    "pull": Command("download a distilled set or an expert store from the Hugging Face hub"),
    "zoo": Command("list the distilled sets that are part of the package"),
    "run": Command("run all stages of a recipe in one folder", True),
    "recipes": Command("list the recipes of published results, or explain one"),
    "demo": Command("run every stage in two minutes, on included data", True),
    "doctor": Command("report on the installation and test it"),
}

#: Commands that print what one function returns: configuration, positional field and function.
_CALLS = {
    "export": ("exchange.config:ExportConfig", "file", "exchange.export:export"),
    "push": ("exchange.config:PushConfig", "source", "exchange.hub:push"),
    "pull": ("exchange.config:PullConfig", "source", "exchange.hub:pull"),
    "report": ("report.config:ReportConfig", "run", "report.page:write_report"),
}

# Number of times that an OpenMP thread polls before it sleeps. A student step is many short
# parallel loops, and after each loop the threads wait for each other. On a busy machine, where one
# of them is often not running, the default of 300000 makes a step 20 times slower. The value 3000
# costs 5 % on an idle machine. OpenMP reads GOMP_SPINCOUNT when torch loads it.
SPIN_COUNT = "3000"

#: Seconds that the other processes of torchrun wait while rank 0 prints the error message.
_GRACE = 10.0

#: Errors of a full disk, an exhausted quota or a file above the size limit.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# Exit statuses that shells report for SIGINT (ctrl-C) and SIGPIPE (the reader of a pipe is gone).
# trajmatch.interruption has those of other signals.
INTERRUPTED = 130
BROKEN_PIPE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status; errors of the user or machine become messages.

    ``argv`` defaults to the arguments of the process. The status is 0 for success, 1 if a check
    found a problem, 2 for an error, 75 after ``--max-time``, or 128 plus the number of a signal.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    _prepare_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with _plain_warnings(), interruption.signals():
            status = _dispatch(arguments)
        sys.stdout.flush()
        return status
    except UserError as error:
        from trajmatch.cli.arguments import as_typed

        if _leaves_message():
            # After the message of rank 0, torchrun ends this process with SIGTERM.
            time.sleep(_GRACE)
        return _fail(as_typed(error.in_flags, arguments))
    except (MemoryError, RuntimeError) as error:
        from trajmatch.memory import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        reason = next(iter(str(error).splitlines()), "an allocation failed")
        return _fail(f"out of memory ({reason}); use smaller settings or free some memory")
    except ImportError as error:
        # Any other failed import is a bug and keeps its traceback.
        if error.name != "trajmatch._C":
            raise
        return _fail(str(error))
    except interruption.Interrupted as stop:
        if _leaves_message():
            return stop.status
        kept = stop.kept or "the files written so far are complete"
        return _stopped(f"stopped by {stop.cause}; {kept}", arguments, stop.status, stop.resumes)
    except KeyboardInterrupt:  # the second ctrl-C, or the only one outside of a command
        return _stopped(
            "interrupted; the files written so far are complete", arguments, INTERRUPTED
        )
    except BrokenPipeError:
        _give_up_output()
        return BROKEN_PIPE
    except OSError as error:
        if error.errno not in _FULL:
            raise
        _give_up_output()
        return _fail(f"cannot write the output: {error.strerror}")


def _leaves_message() -> bool:
    """True in a process of torchrun that leaves the error message to rank 0."""
    # Before the processes join, all fail with the same error. From then on, one process raises the
    # error and the others exit silently (trajmatch.parallel.joined).
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK") == "0":
        return False
    distributed = sys.modules.get("torch.distributed")  # not there: torch is not loaded yet
    return distributed is None or not distributed.is_initialized()


def _prepare_streams() -> None:
    """Make the standard streams accept any text, and replace closed streams by the null device."""
    # Python sets a closed stream to None, and print(..., file=None) writes to stdout. Also, the
    # next opened file would get the descriptor of the closed stream.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (until the process ends)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _give_up_output() -> None:
    # Python flushes stdout again at exit, which would fail and print another error.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show warnings for the user (UserWarning) without file name and line of code."""
    in_full = warnings.formatwarning

    def plain(message: Warning | str, category: type[Warning], *place: Any, **line: Any) -> str:
        if category is UserWarning:
            return f"trajmatch: warning: {message}\n"
        return in_full(message, category, *place, **line)

    warnings.formatwarning = plain
    try:
        yield
    finally:
        warnings.formatwarning = in_full


def _dispatch(arguments: list[str]) -> int:
    if not arguments:
        print(usage(), file=sys.stderr)
        return 2
    name, *rest = arguments
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name == "--version":
        from trajmatch import __version__

        print("trajmatch", __version__)
        return 0
    if name not in COMMANDS:
        raise UserError(
            f"there is no command {name!r}{closest(name, COMMANDS)}; see trajmatch --help"
        )
    # Check this first: resolving any relative path in a deleted folder fails with a traceback.
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise UserError("the current folder was deleted; change to another one") from error
    # trajmatch.parallel imports torch, so import it only under torchrun.
    if "TORCHELASTIC_RUN_ID" in os.environ and not COMMANDS[name].divides:
        from trajmatch.parallel import is_launched

        if is_launched():
            shared = " and ".join(each for each in COMMANDS if COMMANDS[each].divides)
            raise UserError(
                f"torchrun started {os.environ['WORLD_SIZE']} processes, but trajmatch {name} runs "
                f"as one; start it without torchrun; only {shared} can use several processes"
            )
    from trajmatch.memory import keep_freed_memory

    keep_freed_memory()
    if name in _CALLS:
        _call(name, rest)
        return 0
    return int(importlib.import_module(f"trajmatch.cli.{name}").run(rest) or 0)


def _call(name: str, arguments: list[str]) -> None:
    """Run a command of ``_CALLS``; wrong arguments are refused before its function is imported."""
    from trajmatch.cli.arguments import parse

    kind, positional, function = _CALLS[name]
    config = parse(resolve_name(f"trajmatch.{kind}"), arguments, f"trajmatch {name}", positional)
    print(resolve_name(f"trajmatch.{function}")(config))


def usage() -> str:
    """Return the text of ``trajmatch --help``."""
    commands = "\n".join(f"  {name:8} {command.help}" for name, command in COMMANDS.items())
    return f"""usage: trajmatch COMMAND [ARGUMENTS]

Distils a labelled image set into a few synthetic images per class.

{commands}

trajmatch COMMAND --help shows the arguments of a command, --version the release."""


def _stopped(message: str, arguments: Sequence[str], status: int, resumes: bool = True) -> int:
    command = COMMANDS.get(arguments[0]) if arguments else None
    advice = "; continue with --resume" if command and command.resumes and resumes else ""
    print(f"\ntrajmatch: {message}{advice}", file=sys.stderr)
    return status


def _fail(message: str) -> int:
    print(f"trajmatch: error: {message}", file=sys.stderr)
    return 2
