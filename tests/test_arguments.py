"""The command line as a whole: every help, every flag, every mistake in one style."""

from __future__ import annotations

import argparse
import io
import re
import sys
from typing import Any

import pytest

from trajmatch.cli import arguments
from trajmatch.cli.main import COMMANDS, main
from trajmatch.cli.run import _fields_of_one
from trajmatch.distill import DistillConfig
from trajmatch.evaluate import EvalConfig
from trajmatch.experts import ExpertConfig
from trajmatch.recipes import recipe_names

STORE_ACTIONS = [f"store {action}" for action in ("verify", "ls", "trim", "merge", "convexify")]
ALL_COMMANDS = [*(name for name in COMMANDS if name != "store"), *STORE_ACTIONS]
REQUIRED = {
    "run": "--recipe cpu/own/ipc1 --out o",
    "distill": "--experts e --out o",
    "export": "--to npz --out o",
    "push": "--to hf:me/sets",
    **dict.fromkeys(["expert", "demo", "convert", "store trim", "store merge"], "--out o"),
}


def called(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    """Status, output and errors of the program."""
    try:
        status = main(list(argv))
    except SystemExit as stop:
        assert isinstance(stop.code, int)
        status = stop.code
    return status, *capsys.readouterr()


def options_of(command: str, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Flags and values of a command."""
    seen: list[Any] = []

    def read(sections: Any, *_: object) -> None:
        seen.extend(sections)
        raise SystemExit(0)

    with monkeypatch.context() as patch:
        patch.setattr(arguments, "read", read)
        with pytest.raises(SystemExit):
            main([*command.split(), "x"])
    parser = argparse.ArgumentParser()
    return [each for section in seen for each in arguments._add_options(parser, section)]


@pytest.mark.parametrize("command", ALL_COMMANDS)
def test_help_has_the_documentation_of_every_option(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    status, out, err = called(capsys, *command.split(), "--help")
    assert (status, err) == (0, "")
    assert out.startswith(f"usage: trajmatch {command} ")
    assert max(len(line) for line in out.splitlines() if not line.startswith("  --")) <= 80
    tight = re.sub(r"\s", "", out)
    for option in options_of(command, monkeypatch):
        assert option.action.help.replace(" ", "").replace("%%", "%") in tight
        assert option.shown in out


# --- mistakes


@pytest.mark.parametrize("part", [10, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("command", ALL_COMMANDS)
def test_every_mistake_is_one_line_that_names_the_flag_as_typed(
    command: str,
    part: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = options_of(command, monkeypatch)
    values = ["x" for option in options if not option.action.option_strings]
    given = [*REQUIRED.get(command, "").split(), *values[:1]]
    kinds = {int: "a whole number", float: "a number"}
    mistakes = [(["--nonsense", "1"], "has no flag --nonsense")]
    for option in options:
        for flag in option.action.option_strings:
            kind = arguments._kind(option.hint)
            if kind in [(each, False) for each in kinds]:
                for spelling in (flag, "--" + flag[2:].replace("-", "_")):
                    wanted = f"{spelling} should be {kinds[kind[0]]}, but is 'x'"
                    mistakes.append(([spelling, "x"], wanted))
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
        (
            "distill --ipc 0 --experts e --out o",
            "--ipc should be a whole number of at least 1, but is 0",
        ),
        (
            "distill --init_clusters=0 --experts e --out o",
            "--init_clusters should be a whole number of at least 1",
        ),
        ("distill --experts e", "trajmatch distill needs --out; see trajmatch distill"),
        ("distill --out o", "--objective match-trajectory needs --experts, a store that"),
        ("distill --ipc", "--ipc: expected one argument; see trajmatch distill --help"),
        ("distill --lables soft", "has no flag --lables (did you mean --labels?)"),
        (
            "distill --experts e --out o --labels sof",
            "should be one of hard, soft, but is 'sof' (did you mean soft?)",
        ),
        ("distill e o", "trajmatch distill got an unexpected argument 'e'"),
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
        (
            "run --recipe cpu/own/ipc1 --out o --ipc 0",
            "--ipc should be a whole number of at least 1, but is 0",
        ),
        (
            "run --recipe cpu/own/ipc1 --out o --distill.ipc=0",
            "--distill.ipc should be a whole number of at least",
        ),
        (
            "run --recipe cpu/own/ipc1 --out o --epochs 3",
            "has no flag --epochs (did you mean --expert.epochs or --evaluate.epochs?)",
        ),
        (
            "run --recipe cpu/own/ipc1 --out o --distill.seed 3",
            "trajmatch run has no flag --distill.seed (did you mean --seed?)",
        ),
        ("run --recipe cpu/own/ipc1 --out o --ipcs 3", "no flag --ipcs (did you mean --ipc?)"),
        ("run --recipe cpu/own/ipc1 --out o --graph", "(did you mean --distill.no-graph?)"),
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
    own = {"recipe", "out", "experts", "seed", "device"}
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
