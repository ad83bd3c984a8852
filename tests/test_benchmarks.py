"""The programs in benchmarks/: here that they start; the rest by `pytest -m harness`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import bench_expert
import bench_memory
import bench_networks
import bench_optimisers
import grid
import machine
import old_and_new
import parametrisations
import pytest
import same_bytes
from bench.outer import measure_cell
from bench.sizes import Size
from bench.variants import VARIANTS

from trajmatch.experts import ExpertConfig, train_experts

FAST = {name: VARIANTS[name] for name in ("trajmatch", "eager_unroll_nchw")}


@pytest.mark.harness
def test_the_machine_is_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(sizes: list[Size], **_: object) -> Iterator[dict[str, Any]]:
        yield from (measure_cell(size, rounds=1, variants=FAST) for size in sizes)

    monkeypatch.setattr(grid, "measure_cells", measured)
    monkeypatch.setattr(grid, "machine_rates", lambda device: {"copy_gbps": 1.0})
    monkeypatch.setattr(grid, "memory_over_steps", lambda *_: {})
    monkeypatch.setattr(machine, "memory_of", lambda *_: {})
    monkeypatch.setattr(machine, "measure_expert", lambda width, **_: {"agree": True})
    assert machine.main(["--sizes", "4,2,2", "--device", "cpu", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["cells"]["4,2,2"]["rows"]["trajmatch"]["status"] == "measured"
    assert record["cells"]["4,2,2"]["agreement"]["agree"]


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
    [bench_expert, bench_memory, bench_networks, bench_optimisers],
    ids=lambda each: each.__name__,
)
def test_a_program_runs_at_its_smallest_sizes(module: ModuleType, tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    assert module.main(["--quick", "--out", str(record)]) == 0
    assert json.loads(record.read_text())["rows"]


@pytest.mark.harness
def test_operators_are_compared_at_their_smallest_sizes() -> None:
    file = str(Path(same_bytes.__file__).with_name("bench_ops.py"))
    subprocess.run([sys.executable, "-m", "pytest", "-q", "--benchmark-disable", file], check=True)


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


@pytest.mark.harness
def test_parametrisations_are_distilled_and_drawn(tmp_path: Path) -> None:
    store, page = tmp_path / "experts", tmp_path / "page.md"
    page.write_text("<!-- table -->\n\n<!-- end of table -->\n")
    data = "fashion-mnist-mini"
    train_experts(
        ExpertConfig(out=store, data=data, num_experts=1, epochs=6, width=4, workers=1, quiet=True)
    )
    options = ["--out", str(tmp_path / "sets"), "--page", str(page), "--iterations", "1"]
    assert parametrisations.main([str(store), *options, "--seeds", "1", "--epochs", "1"]) == 0
    assert page.read_text().count("\n| `") == 1 + len(parametrisations.SPECS)  # and the head
    assert page.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
