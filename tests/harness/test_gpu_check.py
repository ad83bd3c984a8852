"""benchmarks/gpu_check.py on the CPU build: what a GPU would run first is run here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gpu_check
import pytest
import torch
from bench.problem import make_problem
from bench.recorders import call_again
from bench.sizes import Size
from bench.variants import VARIANTS
from gpu_stages import (
    agreement,
    build,
    cudnn_settings,
    device_tests,
    expert_step,
    first_layer,
    measure,
    outer_iteration,
    own_kernels,
    real_distill,
    replays,
    sanitizer,
    side_by_side,
    step_profile,
    two_devices,
)
from gpu_stages.settings import STAGES, NotRun, Record, Settings

from trajmatch import ops
from trajmatch.random import generator

pytestmark = pytest.mark.harness

SOURCE = Path(__file__).resolve().parents[2]
PROGRAM = SOURCE / "benchmarks" / "gpu_check.py"


def settings_of(stage: str, root: Path = SOURCE, device: str = "cpu") -> Settings:
    return Settings(stage, device, quick=True, installed=True, root=str(root))


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return Record(tmp_path / "record.json")


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., tuple[int, dict[str, dict]]]:
    """Runs the program with the smallest sizes; gives its status and the stages of its JSON."""

    def call(*arguments: str) -> tuple[int, dict[str, dict]]:
        out = tmp_path / "check.json"
        command = [sys.executable, str(PROGRAM), "--device=cpu", "--quick", *arguments]
        status = subprocess.run([*command, f"--out={out}"], check=False).returncode
        return status, json.loads(out.read_text())

    return call


def test_the_program_records_every_stage(run) -> None:
    status, report = run("--installed", "--stages=build,doctor,memcheck", "--commit=abc")
    assert status == 0
    assert report["commit"] == "abc" and report["device"] == "cpu"
    found = {name: stage["status"] for name, stage in report["stages"].items()}
    assert found == {"build": "not run", "doctor": "passed", "memcheck": "not run"}
    assert "CPU" in report["stages"]["memcheck"]["result"]["reason"]
    assert report["stages"]["doctor"]["result"]["report"]["passed"]


@pytest.mark.slow
def test_the_whole_program_with_its_build(run) -> None:
    status, report = run()
    assert status == 0
    assert list(report["stages"]) == list(STAGES)
    assert report["stages"]["build"]["status"] == "passed"
    assert report["stages"]["tests"]["result"]["ops"]["failures"] == 0


def test_no_time_left(run) -> None:
    status, report = run("--installed", "--stages=machine", "--minutes=0")
    assert status == 0
    assert report["stages"]["machine"]["status"] == "not run"
    assert report["stages"]["machine"]["result"]["reason"] == "no time was left"


@pytest.fixture
def stages(monkeypatch, tmp_path) -> Callable[..., dict[str, Any]]:
    """Calls the program with stages that only say that they ran, in ``ran``, and take a second."""
    ran: list[str] = []
    clock = iter(range(10**6))

    def outcome(settings: Settings, scratch: Path, seconds: float) -> dict[str, Any]:
        if seconds <= 0:
            return {"status": "not run", "seconds": 0.0, "result": {}}
        ran.append(settings.stage)
        status = "failed" if settings.stage == "agreement" else "passed"
        return {"status": status, "seconds": 1.0, "result": {}}

    def call(*arguments: str, minutes: float = 9.0, commit: str = "abc") -> dict[str, Any]:
        ran.clear()
        out = tmp_path / "check.json"
        chosen = [f"--out={out}", f"--commit={commit}", f"--minutes={minutes}", "--device=cpu"]
        gpu_check.main([*chosen, "--installed", *arguments])
        return {**json.loads(out.read_text()), "ran": list(ran)}

    monkeypatch.setattr(gpu_check, "run_stage", outcome)
    monkeypatch.setattr(gpu_check.time, "monotonic", lambda: float(next(clock)))
    return call


def test_a_resumed_call_runs_what_had_no_time_left(stages) -> None:
    first = stages(minutes=0.2)
    second = stages("--resume")
    assert 0 < len(first["ran"]) < len(STAGES)
    assert first["ran"] + second["ran"] == list(STAGES)  # the one that failed is not run again
    assert second["stages"]["agreement"]["status"] == "failed"
    assert second["seconds"] > first["seconds"]
    assert stages("--resume")["ran"] == []
    assert stages("--resume", "--stages=agreement,doctor")["ran"] == ["doctor", "agreement"]
    assert stages()["ran"] == list(STAGES)


def test_a_record_of_another_commit_is_not_added_to(stages, capsys) -> None:
    stages("--stages=machine")
    again = stages("--resume", commit="def")
    assert again["ran"] == list(STAGES) and again["commit"] == "def"
    assert "is of another commit, abc: all begins anew" in capsys.readouterr().out


def test_all_calls_together_take_at_most_twelve_minutes(stages, tmp_path) -> None:
    found = stages("--stages=machine")
    found["seconds"] = 12 * 60 - 5
    (tmp_path / "check.json").write_text(json.dumps(found))
    assert 0 < len(stages("--resume")["ran"]) < 5
    assert stages("--resume")["ran"] == []


def test_stages_build_first_where_nothing_is_built(monkeypatch, tmp_path) -> None:
    ran = []
    monkeypatch.setattr(
        gpu_check,
        "run_stage",
        lambda settings, *_: (
            ran.append(settings.stage) or {"status": "passed", "seconds": 0.0, "result": {}}
        ),
    )
    arguments = ["--device=cpu", "--stages=doctor", f"--scratch={tmp_path}"]
    gpu_check.main([*arguments, f"--out={tmp_path / 'out.json'}"])
    assert ran == ["build", "doctor"]
    (tmp_path / "source" / "trajmatch").mkdir(parents=True)
    (tmp_path / "source" / "trajmatch" / "_C.so").touch()
    gpu_check.main([*arguments, f"--out={tmp_path / 'out.json'}"])
    assert ran == ["build", "doctor", "doctor"]


def test_the_profile_counts_by_step(record) -> None:
    step_profile.run(settings_of("profile"), record)
    assert record.content["faults"] == []
    found = record.content["width 4, batch 3"]
    rows = {row["name"]: row for row in found["kernels"]}
    assert rows["trajmatch::student_unroll"]["count"] == 1 / 2  # one call of two steps
    assert found["microseconds_of_kernels"] >= rows["trajmatch::student_unroll"]["microseconds"] > 0
    times = [row["microseconds"] for row in found["kernels"]]
    assert times == sorted(times, reverse=True)


def test_the_first_layer_s_kernels_must_all_run(record, monkeypatch) -> None:
    with pytest.raises(NotRun, match="CUDA alone"):
        first_layer.run(settings_of("first_layer"), record)
    assert {"trajmatch::student_gradient_jvp"} <= {
        row["name"] for row in first_layer.times("cpu", 2, 32, "first")
    }
    rows = [
        {"name": f"first_layer_{index}", "count": 1.0, "microseconds": 2.0} for index in range(9)
    ]
    other = {"name": "other", "count": 1.0, "microseconds": 1.0}

    def times(device: str, batch: int, size: int, blocks: str) -> list[dict[str, object]]:
        return [other] if blocks == "library" else [*rows[: 4 if size == 32 else 9], other]

    monkeypatch.setattr(first_layer, "times", times)
    first_layer.run(settings_of("first_layer", device="cuda"), record)
    assert record.content.pop("faults") == []
    assert record.content == {
        f"width 128, batch {case} pixels": {
            "microseconds_of_all": {"library": 1.0, "first": 2.0 * count + 1},
            "kernels": rows[:count],
        }
        for case, count in (("2, 32", 4), ("1, 64", 9))
    }
    del rows[3]
    record.content["faults"] = []
    first_layer.run(settings_of("first_layer", device="cuda"), record)
    assert record.content["faults"] == [
        "batch 1, 64 pixels: only 8 of 9 kernels of the first layer ran"
    ]


def test_cudnn_s_settings_are_tried_and_put_back(record) -> None:
    before = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    cudnn_settings.run(settings_of("cudnn"), record)
    assert (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic) == before
    assert record.content["faults"] == []
    rows = record.content["4,3,2"]
    assert len(rows) == 4 and all(row["equal_bits"] for row in rows.values())
    assert rows["benchmark False, deterministic False"]["ratio"] == 1.0


def test_memory_runs_out_and_is_recognised(run) -> None:
    # In a process of its own: this one may have freed memory in store.
    status, report = run("--installed", "--stages=out_of_memory")
    assert status == 0 and report["stages"]["out_of_memory"]["result"]["faults"] == []
    assert "bad_alloc" in report["stages"]["out_of_memory"]["result"]["error"]


def test_graphs_of_two_devices_are_compared_with_calls(record, monkeypatch) -> None:
    two_devices.run(settings_of("two_devices"), record)
    assert record.content.pop("faults") == []
    assert len(record.content) == 2 * 4
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(NotRun, match="one GPU"):
        two_devices.run(settings_of("two_devices", device="cuda"), record)


def test_a_real_distill_is_timed_beside_its_replays(record) -> None:
    real_distill.run(settings_of("distill"), record)
    assert record.content["faults"] == []
    assert 0 < record.content["replay_seconds"] < record.content["wall_seconds_an_iteration"]
    assert 0 < record.content["share_of_the_host"] < 1


def test_large_images_are_timed_beside_eager_pytorch(record) -> None:
    outer_iteration.run(settings_of("pixels"), record)
    assert record.content["faults"] == []
    (row,) = record.content["table"].values()
    assert set(row["ratios"]) == {"trajmatch_graph", "eager_unroll_nchw"}


def test_expert_steps(record) -> None:
    expert_step.run(settings_of("expert_step"), record)
    assert record.content.pop("faults") == []
    assert [row["agree"] for row in record.content.values()] == [True, True]


def test_times_are_counted() -> None:
    calls = []
    times = measure.measure(lambda: calls.append(1), "cpu", rounds=3, warmup=2)
    assert len(calls) == 5 and len(times["seconds"]) == 3
    assert times["peak_bytes"] is None
    slow = measure.measure(lambda: time.sleep(0.02), "cpu", rounds=99, longest=0.05)
    assert len(slow["seconds"]) == 3


def test_the_copy_can_be_built(tmp_path) -> None:
    build.copy_sources(tmp_path / "copy")
    names = {path.name for path in (tmp_path / "copy").iterdir()}
    assert {"csrc", "_build", "trajmatch", "tests", "setup.py", "pyproject.toml"} <= names
    assert not list((tmp_path / "copy").rglob("_C*.so"))


def test_an_unknown_stage(capsys) -> None:
    with pytest.raises(SystemExit) as failure:
        gpu_check.main(["--stages=doctor,surgeon"])
    assert failure.value.code == 2
    assert "surgeon" in capsys.readouterr().err


def test_what_is_no_number_is_recorded_as_a_word(record, tmp_path) -> None:
    record.put("errors", {"float64": float("nan"), "all": [1.0, float("inf")]})
    text = (tmp_path / "record.json").read_text()
    assert json.loads(text)["errors"] == {"float64": "NaN", "all": [1.0, "Infinity"]}


def test_a_stage_that_hangs_is_ended_with_its_children(tmp_path) -> None:
    pid = tmp_path / "pid"
    script = f"sleep 600 & echo $! > {pid}; wait"
    status = gpu_check.run_limited(["sh", "-c", script], {}, tmp_path / "log", seconds=0.5)
    assert status is None
    with pytest.raises(ProcessLookupError):
        for _ in range(200):
            os.kill(int(pid.read_text()), 0)
            time.sleep(0.05)


def test_a_stage_that_crashes_leaves_what_it_found(tmp_path, monkeypatch) -> None:
    folder = tmp_path / "stages"
    folder.mkdir()
    (folder / "crash.py").write_text(
        "import os\n\ndef run(settings, record):\n    record.put('half', 1)\n    os.abort()\n"
    )
    child = tmp_path / "child.py"
    child.write_text(
        f"import sys\nsys.path.insert(0, {str(PROGRAM.parent)!r})\n"
        f"import gpu_stages\ngpu_stages.__path__.append({str(folder)!r})\n"
        "import gpu_check\nfrom gpu_stages.settings import STAGES, Stage\n"
        "STAGES['crash'] = Stage('crash', 9)\nsys.exit(gpu_check.main())\n"
    )
    monkeypatch.setattr(gpu_check, "__file__", str(child))
    outcome = gpu_check.run_stage(settings_of("crash"), tmp_path, seconds=60)
    assert outcome["status"] == "failed" and outcome["rc"] == -6
    assert outcome["result"] == {"faults": [], "half": 1}


def test_results_that_are_no_numbers_are_faults() -> None:
    nan = [torch.tensor([float("nan"), 1.0])]
    assert not agreement.worst(nan, [torch.ones(2)]) <= 1


def test_all_implementations_compute_the_same() -> None:
    problem = make_problem(Size(4, 3, 3, depth=2, image_size=8))
    doubles = {
        name: getattr(problem, name).double() for name in ("start", "target", "images", "lr")
    }
    problem = replace(problem, model=problem.model.double(), **doubles)
    wanted = VARIANTS["eager_unroll_nchw"](problem)
    graph = replays.replayed(problem, call_again, 2)
    graph()
    others = [
        VARIANTS[name](problem) for name in ("trajmatch", "eager_unroll_nhwc", "func_adjoint")
    ]
    for found in (*graph(), *others):
        for result, exact in zip(found, wanted, strict=True):
            assert (result - exact).norm() < 1e-9 * exact.norm()


def broken(problem) -> None:
    raise RuntimeError("no such kernel")


def test_what_does_not_fit_into_memory_is_told_from_other_failures() -> None:
    vector = torch.zeros(1).expand(2**44)
    entry, _ = outer_iteration.timed(
        lambda: ops.param_distance(vector, vector, vector), settings_of("outer_iteration"), None
    )
    assert entry == {"error": "does not fit into the device's memory"}


def test_the_table_holds_ratios_and_failures(record, monkeypatch) -> None:
    monkeypatch.setattr(outer_iteration, "find_spec", lambda name: None)
    monkeypatch.setitem(outer_iteration.TRACED_VARIANTS, "compiled_adjoint", broken)
    outer_iteration.run(settings_of("outer_iteration"), record)
    (row,) = record.content["table"].values()
    assert row["compiled_adjoint"] == {"error": "RuntimeError: no such kernel"}
    timed = {"trajmatch_graph", "eager_unroll_nchw", "eager_unroll_nhwc", "func_adjoint"}
    assert set(row["ratios"]) == timed
    assert all(error < 1e-4 for name in timed for error in row[name]["difference"].values())
    assert record.content["faults"] == []
    assert record.content["left_out"] == {"jax": "JAX is not installed"}


def test_jax_is_timed_beside_the_others(record) -> None:
    pytest.importorskip("jax")
    outer_iteration.run(settings_of("outer_iteration"), record)
    (row,) = record.content["table"].values()
    assert row["ratios"]["jax"] > 0 and row["jax"]["peak_bytes"] is None
    assert all(error < 1e-4 for error in row["jax"]["difference"].values())


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(
    "size",
    [
        Size(16, 5, 3),
        Size(4, 3, 2, depth=2, image_size=8),
        Size(4, 3, 2, depth=2, image_size=28),  # is padded
        Size(4, 3, 2, depth=3, image_size=12),  # the last pooling drops a row and a column
    ],
    ids=lambda size: f"{size.key},{size.image_size}",
)
def test_jax_computes_the_same(size, soft) -> None:
    pytest.importorskip("jax")
    from gpu_stages.jax_adjoint import outer_gradient

    problem = make_problem(size)
    if soft:
        logits = torch.randn(size.batch, size.num_classes, generator=generator(0))
        problem = replace(problem, labels=logits)
    wanted = VARIANTS["trajmatch"](problem)
    for result, exact in zip(outer_gradient(problem)(), wanted, strict=True):
        assert result.dtype == exact.dtype and result.shape == exact.shape
        assert (result - exact).norm() < 1e-5 * exact.norm()


def test_one_against_four_side_by_side(record) -> None:
    side_by_side.run(settings_of("side_by_side"), record)
    assert record.content["faults"] == []
    table = record.content["table"]
    experts = ["experts, 4,3,4, graphs of 1", "experts, 4,3,4, graphs of 2"]
    assert list(table) == ["matches, 4,3,3", *experts, "networks, 4,3,3"]
    for row in table.values():
        assert row["4"]["seconds_each"] == row["4"]["median"] / 4
        assert row["ratio"] == row["1"]["median"] / row["4"]["seconds_each"]


def test_a_failing_test_is_a_fault(tmp_path, record) -> None:
    if torch.cuda.is_available():
        pytest.skip("the test set up here asks for a GPU that is absent")
    folder = tmp_path / "tests" / "ops"
    folder.mkdir(parents=True)
    (folder / "test_param_distance.py").write_text(
        "def test_right(): pass\n\ndef test_wrong(): raise ValueError('wrong')\n"
    )
    device_tests.run(settings_of("tests", tmp_path), record)
    assert record.content["ops"]["tests"] == 2 and record.content["ops"]["failures"] == 1
    assert len(record.content["faults"]) == 2  # and nothing is marked for a GPU


TOOL = """\
#!{python}
import subprocess, sys
assert sys.argv[1:5] == ["--tool=memcheck", "--error-exitcode=86", "--kernel-name", "kns=trajmatch"]
{then}
"""


def tool(folder: Path, then: str) -> str:
    """A program in place of compute-sanitizer, which checks its arguments and does what is said."""
    path = folder / "compute-sanitizer"
    path.write_text(TOOL.format(python=sys.executable, then=then))
    path.chmod(0o755)
    return str(path)


def test_cases_run_under_the_sanitizer(tmp_path, record) -> None:
    runs = "print('== ERROR SUMMARY: 0 errors'); sys.exit(subprocess.run(sys.argv[5:]).returncode)"
    sanitizer.check(tool(tmp_path, runs), settings_of("memcheck"), record)
    assert (record.content["rc"], record.content["summary"]) == (0, "ERROR SUMMARY: 0 errors")
    assert record.content["faults"] == []
    found = json.loads((tmp_path / "under_the_tool.json").read_text())
    assert found["unroll, width 4, batch 3"]["errors"]["float64"] < 1e-9


def test_our_kernels_alone_run_under_racecheck(tmp_path, record) -> None:
    own_kernels.run(settings_of("own_kernels"), record)
    assert record.content.pop("faults") == []
    assert {"dsa, crop", "fp16, tape of 0 bytes"} <= set(record.content)
    assert all(entry == {"finite": True, "equal_bits": True} for entry in record.content.values())
    tools = {tool for tool, cases in sanitizer.CASES.values() if cases == "own_kernels"}
    assert tools == {"memcheck", "initcheck", "synccheck", "racecheck"}
    assert set(sanitizer.CASES) == {n for n, stage in STAGES.items() if stage.module == "sanitizer"}


def test_what_the_sanitizer_finds_is_a_fault(tmp_path, record) -> None:
    finds = "print('========= RACECHECK SUMMARY: 3 hazards displayed'); sys.exit(86)"
    sanitizer.check(tool(tmp_path, finds), settings_of("memcheck"), record)
    assert record.content["summary"] == "RACECHECK SUMMARY: 3 hazards displayed"
    (fault,) = record.content["faults"]
    assert "found errors" in fault
