"""The command line as a whole: every help, every flag, every mistake in one style."""

from __future__ import annotations

import dataclasses
import importlib
import io
import itertools
import sys
from collections.abc import Iterator
from typing import Any, get_type_hints

import pytest

from trajmatch.cli import arguments
from trajmatch.cli.main import COMMANDS, main
from trajmatch.cli.run import RunConfig, _fields_of_one
from trajmatch.distill import DistillConfig
from trajmatch.evaluate import EvalConfig
from trajmatch.experts import ExpertConfig
from trajmatch.recipes import recipe_names

STORE_ACTIONS = [f"store {action}" for action in ("verify", "ls", "trim", "merge")]
ALL_COMMANDS = [*(name for name in COMMANDS if name != "store"), *STORE_ACTIONS]
WIDTHS = (60, 80, 200)


def called(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    """Status, output and errors of the program."""
    try:
        status = main(list(argv))
    except SystemExit as stop:
        assert isinstance(stop.code, int)
        status = stop.code
    return status, *capsys.readouterr()


def config_of(command: str, monkeypatch: pytest.MonkeyPatch) -> tuple[type[Any], set[str]]:
    """The dataclass that a command fills, with the fields that are given by position."""
    seen: list[Any] = []

    def fill(marked: Any, *_: object) -> None:
        seen.append(marked)
        raise SystemExit(0)

    with monkeypatch.context() as patch:
        patch.setattr(arguments, "fill", fill)
        name, *rest = command.split()
        with pytest.raises(SystemExit):
            importlib.import_module(f"trajmatch.cli.{COMMANDS[name].module}").run([*rest, "x"])
    hints = get_type_hints(seen[0], include_extras=True)
    positional = {name for name, hint in hints.items() if "Positional" in str(hint)}
    return seen[0], positional


def flags_of(config: type[Any], positional: set[str]) -> Iterator[tuple[str, Any]]:
    """Every flag of a command that takes a number, with its type."""
    hints = get_type_hints(config)
    for field in dataclasses.fields(config):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            for flag, each in flags_of(hint, set()):  # type: ignore[arg-type]
                yield f"--{field.name}.{flag[2:]}", each
        elif field.name not in positional and "Suppress" not in str(field.type):
            yield "--" + field.name.replace("_", "-"), hint


# --- help


@pytest.mark.parametrize("command", ALL_COMMANDS)
@pytest.mark.parametrize("width", WIDTHS)
def test_help_is_wrapped_once(
    command: str, width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    status, out, err = called(capsys, *command.split(), "--help")
    assert (status, err) == (0, "")
    usage, *lines = out.splitlines()
    assert usage.startswith(f"usage: trajmatch {command}")
    assert max(map(len, lines)) <= width
    if width > 130:
        return  # boxes can be side by side
    # A text goes on in the next line where the next word has no room, and nowhere else.
    inner = [line[2:-2] for line in lines if line.startswith("  ")]
    assert len(inner) > 3
    for above, below in itertools.pairwise(inner):
        indent = len(below) - len(below.lstrip())
        text = above[indent:].rstrip()
        if indent >= 4 and text and (above[:indent].isspace() or above[:indent].endswith("  ")):
            assert len(text) + 1 + len(below.split()[0]) > len(above) - indent, (above, below)


@pytest.mark.parametrize("command", ALL_COMMANDS)
def test_help_has_every_text_in_one_piece(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, _ = config_of(command, monkeypatch)
    monkeypatch.setenv("COLUMNS", "100")
    text = " ".join(called(capsys, *command.split(), "--help")[1].split())
    assert "{None}|" not in text.replace("{None}|{[FLOAT", "")
    assert "(default: None)" not in text
    for base in config.__mro__:
        if base.__module__.startswith("trajmatch") and "__post_init__" in vars(base):
            for documented in arguments._documentation(base).values():
                assert documented in text
            break


# --- mistakes


@pytest.mark.parametrize("part", [10, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("command", ALL_COMMANDS)
def test_every_mistake_is_one_line_that_names_the_flag_as_typed(
    command: str,
    part: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, positional = config_of(command, monkeypatch)
    names = {field.name for field in dataclasses.fields(config)}
    required = {
        "recipe": ["--recipe", "cpu/own/ipc1"] if command == "run" else [],
        "experts": ["--experts", "e"] if command == "distill" else [],
        "out": ["--out", "o"],
        "to": ["--to", "npz"],
    }
    given = [each for name in required if name in names for each in required[name]]
    given = [*given, *(["x"] * len(positional))]
    kinds = {int: "a whole number", float: "a number"}
    mistakes = [(["--nonsense", "1"], "has no flag --nonsense")]
    for flag, hint in flags_of(config, positional):
        parts = getattr(hint, "__args__", (hint,))
        kind = next((kinds[each] for each in parts if each in kinds), None)
        spellings = {flag, f"--{flag.rpartition('.')[2]}" if "." in flag else flag}
        for spelling in spellings:
            short = spelling[2:].replace("-", "_")
            if spelling != flag and not any(
                short in _fields_of_one(stage) for stage in ("expert", "distill", "evaluate")
            ):
                continue
            if kind is not None:
                mistakes.append(([spelling, "x"], f"{spelling} should be "))
                mistakes.append(([spelling.replace("-", "_").replace("__", "--"), "x"], " should"))
    for mistake, message in mistakes[::part]:
        status, out, err = called(capsys, *command.split(), *given, *mistake)
        assert (status, out) == (2, ""), mistake
        assert err.startswith("trajmatch: error: ") and err.count("\n") == 1, err
        assert message in err
        for ours in ("Config", "External", "dataclass", "Traceback", "argument 'x'", "parsing"):
            assert ours not in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("distill --ipc 0 --experts e --out o", "--ipc should be at least 1, but is 0"),
        ("distill --init_clusters=0 --experts e --out o", "--init_clusters should be at least 1"),
        ("distill --ipc 1", "trajmatch distill needs --experts and --out; see trajmatch distill"),
        ("distill --ipc", "--ipc needs a value; see trajmatch distill --help"),
        ("distill --lables soft", "has no flag --lables (did you mean --labels?)"),
        ("distill --labels sof", "should be one of hard, soft, but is 'sof' (did you mean soft?)"),
        ("distill e o", "trajmatch distill does not know what to do with 'e'"),
        ("show", "trajmatch show needs FILE; see trajmatch show --help"),
        ("store ls", "trajmatch store ls needs PATHS; see trajmatch store ls --help"),
        ("store verify", "trajmatch store verify needs PATHS; see "),
        ("expert --out o --train_epochs 1", "no flag --train_epochs (did you mean --epochs?)"),
        ("distill --experts e --out o --syn_steps 1", "(did you mean --student-steps?)"),
        (
            "run --recipe cpu/own/ipc1 --out o --syn_steps 1",
            "(did you mean --distill.student-steps",
        ),
        ("expert --out o --seed 99999999999999999999", "--seed should be a whole number, but is"),
        ("recipes mtt", "no recipe 'mtt' (did you mean mtt/"),
        ("run --recipe cpu/own/ipc1 --out o --ipc 0", "--ipc should be at least 1, but is 0"),
        ("run --recipe cpu/own/ipc1 --out o --distill.ipc=0", "--distill.ipc should be at least"),
        (
            "run --recipe cpu/own/ipc1 --out o --epochs 3",
            "say which with --expert.epochs or --evaluate.epochs",
        ),
        (
            "run --recipe cpu/own/ipc1 --out o --distill.seed 3",
            "--distill.seed is set by trajmatch run itself; give --seed, which is for all stages",
        ),
        ("run --recipe cpu/own/ipc1 --out o --ipcs 3", "no flag --ipcs (did you mean --ipc?)"),
        ("run --recipe cpu/own/ipc1 --out o --graph", "(did you mean --no-graph?)"),
    ],
)
def test_messages(argv: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = called(capsys, *argv.split())
    assert (status, out) == (2, "")
    assert err.startswith("trajmatch: error: ") and message in err and err.count("\n") == 1


def test_commands_in_a_message_keep_their_flags() -> None:
    message = "--out is taken; `trajmatch show --out` or --out=x, --init-from"
    typed = arguments.as_typed(message, ["--distill.out=3", "--init_from", "x"])
    assert typed == "--distill.out is taken; `trajmatch show --out` or --distill.out=x, --init_from"


# --- trajmatch run


def test_flags_of_one_stage_need_no_prefix() -> None:
    stages = {"expert": ExpertConfig, "distill": DistillConfig, "evaluate": EvalConfig}
    short = {stage: set(_fields_of_one(stage)) for stage in stages}
    assert {"ipc", "iterations", "lr_img", "graph"} <= short["distill"]
    assert {"width", "num_experts", "lr"} <= short["expert"]
    assert {"seeds", "protocol"} <= short["evaluate"]
    both = {"epochs", "batch_size", "dsa", "network"}
    own = {field.name for field in dataclasses.fields(RunConfig)}
    for names in short.values():
        assert not names & (both | own)


# --- trajmatch recipes


def test_recipes_are_lines_of_whole_names(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = called(capsys, "recipes")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == recipe_names()
    assert all(len(line.split("  ")) >= 2 for line in out.splitlines())


@pytest.mark.parametrize("width", (60, 80))
def test_a_terminal_gets_whole_names_and_no_second_line(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["recipes"]) == 0
    lines = screen.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == recipe_names()
    assert max(map(len, lines)) <= width
