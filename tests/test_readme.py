"""The README's examples run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def python_blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", README.read_text(), re.M | re.S)


def test_the_operators_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = (block for block in python_blocks() if "ops.unroll" in block)
    exec(compile(example, str(README), "exec"), {})
    assert "torch.Size([10, 3, 32, 32])" in capsys.readouterr().out


def test_every_example_is_valid_python() -> None:
    blocks = python_blocks()
    assert blocks
    for block in blocks:
        compile(block, str(README), "exec")
