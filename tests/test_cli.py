import io
import os
import pickle
import subprocess
import sys
import types
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from trajmatch import __version__
from trajmatch.cli import progress as progress_module
from trajmatch.cli.arguments import parse
from trajmatch.cli.main import COMMANDS, Command, main
from trajmatch.cli.progress import Progress
from trajmatch.errors import UserError
from trajmatch.progress import NoProgress


@pytest.fixture
def command(monkeypatch):
    """Installs a command `probe` whose body is given to it."""

    def install(body, resumes=False):
        module = types.ModuleType("trajmatch.cli.probe")
        module.run = body
        monkeypatch.setitem(sys.modules, "trajmatch.cli.probe", module)
        monkeypatch.setitem(COMMANDS, "probe", Command("a test", resumes))

    return install


def raising(error):
    def body(argv):
        raise error

    return body


# --- main


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_lists_every_command(capsys, flag):
    assert main([flag]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for name, command in COMMANDS.items():
        assert f"  {name} " in out and command.help in out


def test_nothing_is_a_mistake(capsys):
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("usage: trajmatch COMMAND")


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"trajmatch {__version__}\n"


@pytest.mark.parametrize(
    ("name", "hint"), [("distil", " (did you mean distill?)"), ("--seed", ""), ("xyz", "")]
)
def test_an_unknown_command_is_named(capsys, name, hint):
    assert main([name]) == 2
    message = f"trajmatch: error: there is no command '{name}'{hint}; see trajmatch --help\n"
    assert capsys.readouterr().err == message


def test_a_command_gets_its_arguments_and_gives_the_status(command):
    seen = []
    command(lambda argv: seen.append(argv) or 3)
    assert main(["probe", "a", "--b"]) == 3
    assert seen == [["a", "--b"]]


def test_a_mistake_of_the_user_is_one_message(command, capsys):
    command(raising(UserError("--ipc should be at least 1, but is 0")))
    assert main(["probe"]) == 2
    assert capsys.readouterr() == ("", "trajmatch: error: --ipc should be at least 1, but is 0\n")


@pytest.mark.parametrize(("resumes", "advice"), [(True, "; continue with --resume"), (False, "")])
def test_an_interruption_says_how_to_go_on(command, capsys, resumes, advice):
    command(raising(KeyboardInterrupt()), resumes)
    assert main(["probe"]) == 130
    message = f"\ntrajmatch: interrupted; the files written so far are complete{advice}\n"
    assert capsys.readouterr().err == message


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 1 byte")]
)
def test_memory_that_runs_out_is_one_message(command, capsys, error):
    command(raising(error))
    assert main(["probe"]) == 2
    assert capsys.readouterr().err.startswith("trajmatch: error: out of memory (")


def test_a_folder_that_was_deleted_is_one_message(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["recipes"]) == 2
    assert "error: the current folder was deleted" in capsys.readouterr().err


def test_a_missing_extension_is_one_message(command, capsys):
    command(raising(ImportError("build it", name="trajmatch._C")))
    assert main(["probe"]) == 2
    assert capsys.readouterr().err == "trajmatch: error: build it\n"


def test_errors_of_the_program_keep_their_traceback(command):
    for error in (ImportError("no such module", name="other"), ZeroDivisionError()):
        command(raising(error))
        with pytest.raises(type(error)):
            main(["probe"])


def test_a_reader_that_goes_away_is_no_error():
    program = [
        sys.executable,
        "-c",
        "import sys; from trajmatch.cli.main import *; sys.exit(main())",
    ]
    process = subprocess.Popen(
        [*program, "--help"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate()
    assert (process.returncode, err) == (141, b"")


def test_python_m_is_the_same_program():
    command = [sys.executable, "-m", "trajmatch", "--version"]
    assert subprocess.check_output(command, text=True) == f"trajmatch {__version__}\n"


@pytest.mark.parametrize(
    ("closed", "arguments", "status", "printed"),
    [("1", "--version", 0, ""), ("2", "nonsense", 2, ""), ("0", "--version", 0, "trajmatch ")],
)
def test_closed_streams_change_no_other_stream(closed, arguments, status, printed):
    """A message for a stream that is closed is lost; it is not printed on another one."""
    command = f'"{sys.executable}" -m trajmatch {arguments} {closed}>&-'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (status, "")
    assert done.stdout.startswith(printed) and bool(done.stdout) == bool(printed)


@pytest.mark.parametrize(
    ("environment", "spins"),
    [
        ({}, "3000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active"}, None),
    ],
)
def test_waiting_threads_spin_shortly_unless_the_user_wants_otherwise(
    command, monkeypatch, environment, spins
):
    seen = []
    command(lambda argv: seen.append(os.environ.get("GOMP_SPINCOUNT")) or 0)
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    main(["probe"])
    assert seen == [spins]


# --- arguments


@dataclass(frozen=True)
class Config:
    """What the probe does."""

    file: Path
    """The file to look at."""
    size: int = 3
    """s: how large it is."""
    loud: bool = False
    """Make a noise."""

    def __post_init__(self):
        if self.size < 1:
            raise UserError(f"--size should be at least 1, but is {self.size}")


def test_flags_are_the_fields():
    config = parse(Config, ["--file", "x", "--size", "5", "--loud"], "trajmatch probe")
    assert config == Config(Path("x"), 5, True)


def test_fields_can_be_given_by_position():
    config = parse(Config, ["x", "--size", "5"], "trajmatch probe", "file")
    assert type(config) is Config
    assert config == Config(Path("x"), 5)
    assert pickle.loads(pickle.dumps(config)) == config


# --- progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress_module, "resident_memory", lambda: 300 * 2**20)
    return now


def plain_console():
    return Console(file=io.StringIO(), force_terminal=False, width=40)


def test_without_a_terminal_there_are_lines_every_few_seconds(clock):
    console = plain_console()
    with Progress(300, "distil", console=console) as progress:
        for done in range(100, 301):
            progress.update(done, loss=done / 1000, step_size=0.01)
            clock[0] += 0.125
    assert console.file.getvalue().splitlines() == [
        "distil 100/300  loss 0.1  step size 0.01  memory 300 MB",
        "distil 140/300  8/s  20 s left  loss 0.14  step size 0.01  memory 300 MB",
        "distil 180/300  8/s  15 s left  loss 0.18  step size 0.01  memory 300 MB",
        "distil 220/300  8/s  10 s left  loss 0.22  step size 0.01  memory 300 MB",
        "distil 260/300  8/s  5 s left  loss 0.26  step size 0.01  memory 300 MB",
        "distil 300/300  8/s  25 s in all  loss 0.3  step size 0.01  memory 300 MB",
    ]


def test_slow_work_shows_the_seconds_of_one_unit(clock):
    console = plain_console()
    with Progress(1000, "expert", console=console) as progress:
        progress.update(0)
        clock[0] += 8
        progress.update(2)
    assert console.file.getvalue().splitlines()[-1] == (
        "expert 2/1000  4 s each  1:06:32 left  memory 300 MB"
    )


def test_a_terminal_gets_one_bar(clock):
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with Progress(10, "distil", console=console) as progress:
        for done in range(11):
            progress.update(done, loss=0.25)
            clock[0] += 1
    shown = console.file.getvalue()
    assert "10/10" in shown and "loss 0.25  memory 300 MB" in shown and "10 s in all" in shown


def test_a_narrow_terminal_shows_the_numbers_below_the_bar(clock):
    console = Console(file=io.StringIO(), force_terminal=True, width=72)
    with Progress(5000, "distill", console=console) as progress:
        for done in (0, 100):
            progress.update(done, loss=0.25, step_size=0.0123, accuracy=71.25, dropped=3)
            clock[0] += 8
    shown = console.file.getvalue().splitlines()
    bar = next(number for number, line in enumerate(shown) if "100/5000" in line)
    assert "12.5/s  6:32 left" in shown[bar]
    assert shown[bar + 1].strip() == (
        "loss 0.25  step size 0.0123  accuracy 71.25  dropped 3  memory 300 MB"
    )


def test_memory_of_a_gpu_is_shown_where_one_is_used(clock, monkeypatch):
    monkeypatch.setattr(progress_module, "device_memory", lambda: 5 * 2**29)
    console = plain_console()
    with Progress(1, "distil", console=console) as progress:
        progress.update(1)
    assert console.file.getvalue() == "distil 1/1  memory 300 MB  GPU 2560 MB\n"


def test_quiet_is_silent(capsys):
    with Progress(10, "distil", quiet=True) as progress:
        progress.update(10, loss=1.0)
    NoProgress().update(10, loss=1.0)
    assert capsys.readouterr() == ("", "")


def test_progress_goes_to_the_error_stream(capsys):
    with Progress(1, "distil") as progress:
        progress.update(1)
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("distil 1/1  memory ")


def test_warnings_are_shown_without_the_code_they_come_from(command, capsys):
    def body(argv):
        for kind in (UserWarning, RuntimeWarning):
            text = warnings.formatwarning(kind("mind the gap"), kind, "module.py", 3, "code()")
            print(text, end="")
        return 0

    before = warnings.formatwarning
    command(body)
    assert main(["probe"]) == 0
    assert capsys.readouterr().out == (
        "trajmatch: warning: mind the gap\nmodule.py:3: RuntimeWarning: mind the gap\n  code()\n"
    )
    assert warnings.formatwarning is before
