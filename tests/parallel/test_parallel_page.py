"""The commands of docs/parallel.md."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from trajmatch.cli.arguments import parse, recipe_of
from trajmatch.distill import DistillConfig
from trajmatch.experts import ExpertConfig

PAGE = (Path(__file__).parents[2] / "docs" / "parallel.md").read_text()


def test_the_commands_of_the_page_are_understood() -> None:
    blocks = "".join(re.findall(r"^```bash\n(.*?)^```", PAGE, re.M | re.S))
    commands = [line for line in blocks.splitlines() if "torchrun" in line]
    assert len(commands) == 4
    for line in commands:
        words = shlex.split(line)
        words = words[words.index("torchrun") :]
        command, *argv = words[words.index("-m") + 2 :]
        assert words[words.index("-m") + 1] == "trajmatch"
        recipe = recipe_of(argv)
        if command == "expert":
            config = parse(ExpertConfig, argv, "expert", defaults=recipe.expert if recipe else {})
        else:
            defaults = recipe.distill if recipe else {}
            config = parse(DistillConfig, argv, "distill", defaults=defaults)
            nodes = int(words[words.index("--nnodes") + 1]) if "HOST:29500" in words else 1
            processes = int(words[words.index("--nproc-per-node") + 1]) * nodes
            assert config.matches >= processes
        assert config.device == "cuda"
