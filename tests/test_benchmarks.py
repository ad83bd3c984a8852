"""The programs in benchmarks/: here that they start; the rest by `pytest -m harness`."""

from __future__ import annotations

import json
from pathlib import Path

import machine
import old_and_new
import pytest
import same_bytes


def test_the_machine_is_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "machine_rates", lambda device: {})
    monkeypatch.setattr(machine, "memory", lambda size, device: {})
    monkeypatch.setattr(machine, "measure_expert", lambda width, **_: {"agree": True})
    sizes = ["--sizes", "4,2,2", "--rounds", "1", "--seconds", "1", "--device", "cpu"]
    assert machine.main([*sizes, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["cells"][0]["rows"]["trajmatch"]["status"] == "measured"
    assert record["cells"][0]["agreement"]["agree"]


def test_builds_that_differ_are_told_apart() -> None:
    before = {"mtt": {"images": "1", "labels": "2"}, "eval": {"scores": "3"}}
    after = {"mtt": {"images": "1", "labels": "4"}, "eval": {"scores": "3"}}
    assert same_bytes.table(before, after).splitlines()[2:] == [
        "| mtt | 1 | **2 / 4** |  |",
        "| eval |  |  | 3 |",
    ]


@pytest.mark.harness
def test_two_builds_give_the_same_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    here = str(Path(same_bytes.__file__).parents[1])
    assert same_bytes.main([here, here, "--cases", "mtt", "eval-datm"]) == 0
    assert "2 runs, different: none" in capsys.readouterr().out


@pytest.mark.harness
def test_two_builds_are_timed_in_turn(capsys: pytest.CaptureFixture[str]) -> None:
    here = str(Path(same_bytes.__file__).parents[1])
    assert old_and_new.main([here, here, "--sizes", "4,2,2", "--rounds", "1", "--demos", "0"]) == 0
    assert "width,batch,N 4,2,2" in capsys.readouterr().out
