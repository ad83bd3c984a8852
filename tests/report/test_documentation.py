"""The commands of docs/report.md are understood."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from trajmatch.cli.arguments import parse
from trajmatch.cli.show import ShowConfig
from trajmatch.distill import DistillConfig
from trajmatch.evaluate.config import EvalConfig
from trajmatch.report.config import ReportConfig

PAGE = Path(__file__).parents[2] / "docs" / "report.md"
COMMANDS = {
    "report": (ReportConfig, "run"),
    "show": (ShowConfig, "file"),
    "eval": (EvalConfig, "file"),
    "distill": (DistillConfig,),
}


def test_the_commands_of_the_documentation_are_understood() -> None:
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    lines = "".join(blocks).splitlines()
    assert len(lines) == 7
    for line in lines:
        program, command, *argv = shlex.split(line.partition(" > ")[0])
        assert program == "trajmatch"
        config, *positional = COMMANDS[command]
        parse(config, argv, f"trajmatch {command}", *positional)


def test_its_picture_is_there() -> None:
    picture = PAGE.with_name("report.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size < 300_000
