"""The programs in benchmarks/: here that they start; the rest by `pytest -m harness`."""

from __future__ import annotations

import json

import machine
import pytest


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
