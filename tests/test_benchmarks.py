"""The programs in benchmarks/: here that they start; the rest by `pytest -m harness`."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import bench_expert
import bench_memory
import bench_networks
import bench_ops
import machine
import old_and_new
import pytest
import same_bytes


def test_the_machine_is_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "machine_rates", lambda device: {})
    monkeypatch.setattr(machine, "memory_of", lambda *_: {})
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
@pytest.mark.parametrize(
    "module",
    [bench_expert, bench_memory, bench_networks, bench_ops],
    ids=lambda each: each.__name__,
)
def test_a_program_runs_at_its_smallest_sizes(module: ModuleType, tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    assert module.main(["--quick", "--out", str(record)]) == 0
    assert json.loads(record.read_text())["rows"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seconds", "nan"], "--seconds should be positive"),
        (["--rounds", "0"], "--rounds should be at least 1"),
        (["--device", "nowhere"], "--device should be auto, cpu, cuda or cuda:N, but is 'nowhere'"),
    ],
)
def test_a_wrong_argument_is_a_message(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert machine.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_slow_baselines_take_part_where_there_is_time() -> None:
    left_out = machine.within(10.0, 77)["leave_out"]
    assert left_out.keys() == {"compiled_adjoint", "func_adjoint"}
    assert all("--seconds more than 77" in reason for reason in left_out.values())
    assert machine.within(100.0, 77)["leave_out"] == {}


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
