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
from types import ModuleType, SimpleNamespace

import gpu_check
import pytest
import torch
from gpu_stages import (
    agreement,
    build,
    device_tests,
    expert_step,
    measure,
    outer_iteration,
    own_kernels,
    replays,
    sanitizer,
    side_by_side,
)
from gpu_stages.settings import STAGES, NotRun, Record, Settings

from trajmatch import networks, ops
from trajmatch.bench.problem import make_problem
from trajmatch.bench.sizes import Size
from trajmatch.bench.variants import VARIANTS
from trajmatch.random import generator
from trajmatch.recording import call_again

SOURCE = Path(__file__).resolve().parents[1]
PROGRAM = SOURCE / "benchmarks" / "gpu_check.py"


def settings_of(stage: str, root: Path = SOURCE, device: str = "cpu") -> Settings:
    return Settings(stage, device, quick=True, installed=True, source=SOURCE, root=root)


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


def test_an_unknown_stage(capsys) -> None:
    with pytest.raises(SystemExit) as failure:
        gpu_check.main(["--stages=doctor,surgeon"])
    assert failure.value.code == 2
    assert "surgeon" in capsys.readouterr().err


def test_settings_reach_the_child_as_they_are() -> None:
    settings = settings_of("doctor", Path("/a folder/with 'quotes'"))
    assert Settings.from_json(settings.to_json()) == settings


def test_what_is_no_number_is_recorded_as_a_word(record, tmp_path) -> None:
    record.put("errors", {"float64": float("nan"), "all": [1.0, float("inf")]})
    text = (tmp_path / "record.json").read_text()
    assert json.loads(text)["errors"] == {"float64": "nan", "all": [1.0, "inf"]}


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


def test_a_wrong_operator_is_a_fault(record, monkeypatch) -> None:
    wrong = SimpleNamespace(**{name: getattr(ops, name) for name in ops.__all__})
    wrong.soft_cross_entropy = lambda *inputs: 1.001 * ops.soft_cross_entropy(*inputs)
    monkeypatch.setattr(agreement, "ops", wrong)
    monkeypatch.setattr(
        agreement, "cases", lambda quick, all_cases=agreement.cases: list(all_cases(quick))[1:3]
    )
    agreement.run(settings_of("agreement"), record)
    faults = record.content["faults"]
    assert len(faults) == 2 and all(fault.startswith("loss, float") for fault in faults)


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
    monkeypatch.setitem(outer_iteration.VARIANTS, "trajmatch", broken)
    outer_iteration.run(settings_of("outer_iteration"), record)
    (fault,) = record.content["faults"]
    assert "no such kernel" in fault


def test_jax_that_is_not_installed_is_noted(record, monkeypatch) -> None:
    monkeypatch.setattr(outer_iteration, "find_spec", lambda name: None)
    outer_iteration.run(settings_of("outer_iteration"), record)
    (row,) = record.content["table"].values()
    assert "jax" not in row
    assert record.content["left_out"] == {"jax": "JAX is not installed"}
    assert record.content["faults"] == []


def test_jax_that_fails_is_no_fault(record, monkeypatch) -> None:
    monkeypatch.setattr(outer_iteration, "find_spec", lambda name: name)
    monkeypatch.setitem(
        sys.modules, "gpu_stages.jax_adjoint", SimpleNamespace(outer_gradient=broken)
    )
    outer_iteration.run(settings_of("outer_iteration"), record)
    (row,) = record.content["table"].values()
    assert row["jax"] == {"error": "RuntimeError: no such kernel"}
    assert record.content["faults"] == [] and "left_out" not in record.content


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
    assert list(table) == ["matches, 4,3,3", "experts, 4,3,3"]
    for row in table.values():
        assert row["4"]["seconds_each"] == row["4"]["median"] / 4
        assert row["ratio"] == row["1"]["median"] / row["4"]["seconds_each"]


def test_a_match_or_an_expert_that_another_one_disturbs_is_a_fault(record, monkeypatch) -> None:
    def disturbed(problem, record, count):
        graph = replays.replayed(problem, record, count)
        return lambda: [
            each._replace(images=(1 + k) * each.images) for k, each in enumerate(graph())
        ]

    class Disturbed(side_by_side.ReplayedSteps):
        def __call__(self, batch):
            losses = super().__call__(batch)
            for state in self._states[1:]:
                state.theta.mul_(2)
            return losses

    monkeypatch.setattr(side_by_side, "replayed", disturbed)
    monkeypatch.setattr(side_by_side, "ReplayedSteps", Disturbed)
    side_by_side.run(settings_of("side_by_side"), record)
    matches, experts = record.content["faults"]
    assert matches.startswith("matches, 4,3,3, 4 at once: {'match 0'")
    assert experts.startswith("experts, 4,3,3, 4 at once: parameters are off by")


def test_expert_steps(record) -> None:
    expert_step.run(settings_of("expert_step"), record)
    table = record.content["table"]
    loops = {name for name in table if isinstance(table[name], dict)}
    assert len(loops) == 4
    assert all(table[name]["seconds_each"] == table[name]["median"] / 2 for name in loops)
    assert record.content["ratio"] > 0


def test_both_loops_of_expert_steps_end_at_the_same_parameters(monkeypatch) -> None:
    model = networks.initialise(networks.ConvNet(3, 10, 8, width=4, depth=2), generator(0))
    images, labels = torch.randn(8, 3, 8, 8, generator=generator(1)), torch.arange(8)
    taken = []
    monkeypatch.setattr(expert_step.ops, "sgd_step", keep(ops.sgd_step, taken))
    expert_step.ours(model, lambda: images, labels, steps=5)()
    trained = networks.build(model.spec())
    monkeypatch.setattr(expert_step.networks, "build", lambda spec: trained)
    expert_step.eager(model, images, labels, 5, torch.channels_last)()
    assert len(taken) == 5
    torch.testing.assert_close(taken[-1][0], networks.flat_parameters(trained))


def keep(function: Callable, results: list) -> Callable:
    def kept(*args):
        results.append(function(*args))
        return results[-1]

    return kept


def test_times_are_counted(monkeypatch) -> None:
    calls = []
    times = measure.measure(lambda: calls.append(1), "cpu", rounds=3, warmup=2)
    assert len(calls) == 5 and len(times["seconds"]) == 3
    assert times["peak_bytes"] is None
    monkeypatch.setattr(measure, "_by_the_host", lambda function: 0.4)
    assert measure.measure(print, "cpu", rounds=9, warmup=0, longest=1.0)["seconds"] == [0.4] * 3


def test_another_library_is_timed_by_the_host() -> None:
    times = measure.measure(lambda: None, "cuda", rounds=2, blocking=True)
    assert len(times["seconds"]) == 2 and times["peak_bytes"] is None


def test_the_copy_can_be_built(tmp_path) -> None:
    build.copy_sources(settings_of("build", tmp_path))
    assert (tmp_path / "csrc" / "sources.json").exists()
    assert (tmp_path / "_build" / "extension.py").exists()
    assert not list(tmp_path.rglob("_C*.so"))


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
    assert found["unroll width 4"]["errors"]["float64"] < 1e-9


def test_our_kernels_alone_run_under_racecheck(tmp_path, record) -> None:
    own_kernels.run(settings_of("own_kernels"), record)
    assert record.content.pop("faults") == []
    assert {"dsa", "fp16, tape of 0 bytes"} <= set(record.content)
    assert all(entry == {"finite": True, "equal_bits": True} for entry in record.content.values())
    assert sanitizer.CASES["racecheck"] == "own_kernels"


def test_different_bits_are_a_fault(record, monkeypatch) -> None:
    draws = iter(range(99))
    monkeypatch.setattr(
        own_kernels,
        "outer",
        lambda device, tape_bytes: [torch.tensor(float(next(draws)))],
    )
    own_kernels.run(settings_of("own_kernels"), record)
    assert len(record.content["faults"]) == 6
    assert "different bits" in record.content["faults"][0]


def test_what_the_sanitizer_finds_is_a_fault(tmp_path, record) -> None:
    finds = "print('========= RACECHECK SUMMARY: 3 hazards displayed'); sys.exit(86)"
    sanitizer.check(tool(tmp_path, finds), settings_of("memcheck"), record)
    assert record.content["summary"] == "RACECHECK SUMMARY: 3 hazards displayed"
    (fault,) = record.content["faults"]
    assert "found errors" in fault


def test_a_machine_without_the_sanitizer(record, monkeypatch) -> None:
    monkeypatch.setattr(sanitizer, "find", lambda: None)
    with pytest.raises(NotRun, match="not installed"):
        sanitizer.run(settings_of("memcheck", device="cuda"), record)


def test_every_stage_has_its_module() -> None:
    for stage in STAGES.values():
        module: ModuleType = gpu_check.importlib.import_module(f"gpu_stages.{stage.module}")
        assert callable(module.run)
