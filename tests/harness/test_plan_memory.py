"""benchmarks/plan_memory.py at one small size."""

from __future__ import annotations

import json
from pathlib import Path

import plan_memory
import pytest

pytestmark = pytest.mark.harness


def test_the_prediction_is_near_what_it_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "record.json"
    assert plan_memory.main(["--cells", "8,10,20", "--tapes", "0", "64", "--out", str(out)]) == 0
    record = json.loads(out.read_text())
    assert [row["tape_mb"] for row in record["rows"]] == [0, 64]
    assert all(abs(row["off"]) <= plan_memory.TOLERANCE for row in record["rows"])
    assert "2 runs, the worst prediction is off by" in capsys.readouterr().out
