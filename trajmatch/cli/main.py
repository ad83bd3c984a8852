"""The program ``trajmatch``. Only what the chosen command needs is loaded."""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from trajmatch import interruption
from trajmatch.errors import UserError, closest


class Command(NamedTuple):
    """A command of the program, run by ``run(arguments)`` of its module.

    That returns the exit status, or None for 0.
    """

    help: str
    resumes: bool = False  # whether it has the flag --resume
    divides: bool = False  # whether several processes of torchrun can share its work


#: By name, which is also the name of the module in trajmatch.cli.
COMMANDS = {
    "expert": Command("train experts on real images and keep their trajectories", True, True),
    "distill": Command("distil a few images per class from a store of experts", True, True),
    "eval": Command("train fresh networks on distilled images and test them", True),
    "store": Command("check, list, cut down, merge or convexify stores of experts"),
    "score": Command("score real images by how hard they are for experts (EL2N)"),
    "show": Command("draw distilled images as a picture or an animation"),
    "report": Command("what a run did and what came of it, as one HTML file"),
    "convert": Command("convert files of the papers' scripts to ours, and back"),
    "export": Command("write distilled images in a form that other programs read"),
    "run": Command("experts, distillation and evaluation of a recipe, in one folder", True),
    "recipes": Command("list the recipes of published results, or explain one"),
    "demo": Command("all of it in two minutes, on data that is included", True),
    "doctor": Command("what is installed, what was built, and whether it works"),
}

# A student step is many short parallel loops, after each of which the threads wait for each other,
# spinning. OpenMP's own 300000 turns make that 20 times slower on a machine with other work to do,
# where one of the threads is often not running. With 3000 a machine to itself loses 5 per cent.
# OpenMP reads this when torch loads it.
SPIN_COUNT = "3000"

#: Seconds that a process of torchrun leaves to the first one to say what is wrong.
_GRACE = 10.0

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

INTERRUPTED = 130  # what shells report for a program ended by ctrl-C
BROKEN_PIPE = 141  # and for one whose reader went away; other signals: trajmatch.interruption


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, and turn what can go wrong outside the program into a message.

    Args:
        argv: The arguments; those of the process if None.

    Returns:
        The exit status: 0, 1 where a check found something, 2 for a mistake of the user, 128 and
        the number of the signal that stopped the command, or 75 where its ``--max-time`` was up.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    _prepare_streams()
    return _main(list(sys.argv[1:] if argv is None else argv))


def _main(arguments: list[str]) -> int:
    """Run one command; see :func:`main`."""
    try:
        with _plain_warnings(), interruption.signals():
            status = _dispatch(arguments)
        sys.stdout.flush()
        return status
    except UserError as error:
        from trajmatch.cli.arguments import as_typed

        if _leaves_message():
            time.sleep(_GRACE)  # SIGTERM, which torchrun sends after the first's message, ends it
        return _fail(as_typed(error.in_flags, arguments))
    except (MemoryError, RuntimeError) as error:
        from trajmatch.memory import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        reason = next(iter(str(error).splitlines()), "an allocation failed")
        return _fail(f"there is not enough memory ({reason}); ask for less, or free some")
    except ImportError as error:
        if error.name != "trajmatch._C":
            raise
        return _fail(str(error))
    except interruption.Interrupted as stop:
        if _leaves_message():
            return stop.status
        kept = stop.kept or "what was written is whole"
        message = f"stopped by {stop.cause}; {kept}"
        return _stopped(message, arguments, stop.status, stop.resumes)
    except KeyboardInterrupt:  # the second ctrl-C, or the only one outside of a command
        return _stopped("interrupted; what was written is whole", arguments, INTERRUPTED)
    except BrokenPipeError:
        _give_up_output()
        return BROKEN_PIPE
    except OSError as error:
        if error.errno not in _FULL:
            raise
        _give_up_output()
        return _fail(f"cannot write the output: {error.strerror}")


def _leaves_message() -> bool:
    """True in a process of torchrun whose message another one prints.

    Until they have joined (:func:`trajmatch.parallel.joined`, which then finds one that tells), all
    processes refuse the same arguments, and the first tells.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK") == "0":
        return False
    distributed = sys.modules.get("torch.distributed")  # not there: torch is not loaded yet
    return distributed is None or not distributed.is_initialized()


def _prepare_streams() -> None:
    """Make the standard streams take any text, and open the null device where they are closed.

    Messages for a closed stream would be printed on another one, and files would take its number.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (for as long as it runs)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _give_up_output() -> None:
    # Python flushes the stream once more at exit, which would fail again and say so
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show warnings that are meant for the user without the line of code that they come from."""
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
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise UserError("the current folder was deleted; change to another one") from error
    if "TORCHELASTIC_RUN_ID" in os.environ and not COMMANDS[name].divides:
        from trajmatch.parallel import is_launched

        if is_launched():
            shared = " and ".join(each for each in COMMANDS if COMMANDS[each].divides)
            raise UserError(
                f"torchrun started {os.environ['WORLD_SIZE']} processes, but trajmatch {name} runs "
                f"as one; start it without torchrun, which is for {shared}"
            )
    from trajmatch.memory import keep_freed_memory

    keep_freed_memory()
    return int(importlib.import_module(f"trajmatch.cli.{name}").run(rest) or 0)


def usage() -> str:
    """Return the help of the program as a whole."""
    commands = "\n".join(f"  {name:8} {command.help}" for name, command in COMMANDS.items())
    return f"""usage: trajmatch COMMAND [ARGUMENTS]

Distils a labelled image set into a few synthetic images per class.

{commands}

trajmatch COMMAND --help shows the arguments of a command, --version the release."""


def _stopped(message: str, arguments: Sequence[str], status: int, resumes: bool = True) -> int:
    command = COMMANDS.get(arguments[0]) if arguments else None
    advice = "; go on with --resume" if command and command.resumes and resumes else ""
    print(f"\ntrajmatch: {message}{advice}", file=sys.stderr)
    return status


def _fail(message: str) -> int:
    print(f"trajmatch: error: {message}", file=sys.stderr)
    return 2
