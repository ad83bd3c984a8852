"""The measuring code of the benchmarks: counts, fits, cells and tables, at tiny sizes."""

from __future__ import annotations

import json
import time
from functools import partial

import machine
import pytest
import torch
from bench import memory as memory_module
from bench import outer, tables
from bench.agreement import ALL_STEPS, FIRST_STEP, agreement
from bench.expert import KINDS, measure_expert
from bench.flops import forward_flops, outer_flops
from bench.names import BASELINES, OURS
from bench.problem import Problem, make_problem
from bench.rates import machine_rates
from bench.sizes import GRID, HEADLINE, TINY, Size, parse_size
from bench.timing import alternate, fit_line, summary
from bench.variants import TRACED_VARIANTS, VARIANTS, OuterGradient
from rich.console import Console

from trajmatch.errors import UserError
from trajmatch.networks import ConvNet

pytestmark = pytest.mark.harness

FAST = {name: VARIANTS[name] for name in ("trajmatch", "eager_unroll_nchw")}


def printed(*what: object) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(*what)
    return capture.get()


# --- sizes and counts


def test_the_grid_is_the_whole_grid() -> None:
    assert len(GRID) == len(set(GRID)) == 36
    work = [size.width**2 * size.batch for size in GRID]
    assert work == sorted(work)


def test_a_size_is_read_from_its_key() -> None:
    for size in HEADLINE:
        assert parse_size(size.key) == size


@pytest.mark.parametrize("text", ["", "32", "32,10", "32,10,x", "32,10,0", "32,10,-1", "1,2,3,4"])
def test_a_size_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="but is"):
        parse_size(text)


def test_operations_equal_a_count_by_hand() -> None:
    convolution = 2 * (9 * 3) * (4 * 8 * 8)  # taps and channels in, for each output
    linear = 2 * (4 * 4 * 4) * 10
    assert forward_flops(ConvNet(3, 10, 8, width=4, depth=1)) == convolution + linear
    assert outer_flops(TINY) == 9 * (convolution + linear) * 3 * 2


def test_operations_of_the_papers_network() -> None:
    convolutions = 27 * 1024 * 128 + 9 * 128**2 * (256 + 64)
    assert forward_flops(ConvNet(3, 10, 32)) == 2 * (convolutions + 128 * 16 * 10)


# --- times


def test_rounds_alternate_and_begin_with_another_function_each() -> None:
    calls: list[str] = []
    taken = alternate({name: partial(calls.append, name) for name in "abc"}, rounds=3)
    assert "".join(calls) == "abcbcacab"
    assert all(len(rounds) == 3 and min(rounds) >= 0 for rounds in taken.values())


def test_a_summary_has_median_minimum_and_all_rounds() -> None:
    assert summary([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "rounds": [3.0, 1.0, 2.0]}


def test_a_line_predicts_what_is_linear() -> None:
    line = fit_line([2, 4, 8], [5 + 3 * n for n in (2, 4, 8)])
    assert line.at(80) == pytest.approx(5 + 3 * 80)
    assert line.error < 1e-12


def test_a_line_tells_how_far_a_point_is_off() -> None:
    assert fit_line([1, 2, 3], [1.0, 3.0, 3.0]).error == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("steps", "per_step", "expected"),
    [
        (80, 0.5, [80]),  # in time
        (80, 3.0, [3, 6, 10]),  # no more than 10 are needed
        (80, 5.0, [2, 4, 6]),  # fewer in time
        (80, 99.0, [1, 2, 3]),  # the least that shows a line
        (6, 99.0, [6]),  # as much work as 1, 2 and 3
        (3, 99.0, [3]),
    ],
)
def test_steps_are_as_many_as_there_is_time_for(
    steps: int, per_step: float, expected: list[int]
) -> None:
    assert outer.plan_steps(steps, per_step, allowed=60.0) == expected


def test_a_row_beyond_what_was_measured_lies_on_the_line() -> None:
    row = outer.row(80, {n: [0.1 + 0.02 * n, 0.2 + 0.02 * n] for n in (3, 6, 10)})
    assert row["status"] == "extrapolated" and row["measured_at_n"] == [3, 6, 10]
    assert row["seconds"]["median"] == pytest.approx(0.15 + 0.02 * 80)
    assert row["seconds"]["min"] == pytest.approx(0.1 + 0.02 * 80)
    assert row["seconds"]["rounds"] == pytest.approx([0.1 + 0.02 * 80, 0.2 + 0.02 * 80])
    assert row["at_n"]["3"]["median"] == pytest.approx(0.21)


def test_times_that_are_not_linear_are_not_extrapolated() -> None:
    row = outer.row(80, {n: [float(n**2)] for n in (3, 6, 10)})
    assert row["status"] == "not_linear"
    assert "seconds" not in row and "from the line" in row["reason"]
    assert row["distance_from_line"]["min"] > 0.1


def test_a_busy_spell_does_not_hide_a_line() -> None:
    row = outer.row(80, {n: [0.1 * n, 0.5 * n if n == 6 else 0.1 * n] for n in (3, 6, 10)})
    assert row["status"] == "extrapolated"
    assert row["seconds"]["min"] == pytest.approx(8.0)


def test_ours_may_take_longer_before_it_is_extrapolated() -> None:
    def slow(problem: Problem) -> OuterGradient:
        time.sleep(0.01 * problem.size.steps)
        return VARIANTS["trajmatch"](problem)

    variants = {"trajmatch": slow, "eager_unroll_nchw": slow}
    size = TINY.with_steps(7)
    found = outer.measure_cell(size, rounds=1, seconds_per_variant=0.08, variants=variants)
    assert found["rows"]["trajmatch"]["status"] == "measured"
    assert found["rows"]["eager_unroll_nchw"]["measured_at_n"] == [1, 2, 3]


# --- agreement


def result(loss: float = 1.0, image: float = 1.0) -> OuterGradient:
    images = torch.ones(5, 1, 2, 2)
    images[0] = image
    return OuterGradient(torch.tensor(loss), images, torch.tensor(2.0))


def test_equal_results_agree() -> None:
    found = agreement({"a": result(), "b": result()}, "a", FIRST_STEP["cpu"])
    assert found["agree"] and found["differences"]["b"]["images"] == 0


@pytest.mark.parametrize(
    "other", [result(loss=1.001), result(loss=float("nan")), result(image=1.5)]
)
def test_other_results_do_not(other: OuterGradient) -> None:
    assert not agreement({"a": result(), "b": other}, "a", FIRST_STEP["cpu"])["agree"]


def test_a_relu_that_falls_the_other_way_in_one_image_is_allowed() -> None:
    found = agreement({"a": result(), "b": result(image=1.005)}, "a", FIRST_STEP["cpu"])
    assert found["agree"]
    assert found["differences"]["b"]["images"] > 1e-3
    assert found["differences"]["b"]["images_median"] == 0


# --- cells


@pytest.fixture(scope="module")
def cell() -> dict:
    return outer.measure_cell(TINY, rounds=3, variants=TRACED_VARIANTS)


def test_all_variants_compute_the_same(cell: dict) -> None:
    assert cell["agreement"]["agree"], cell["agreement"]
    assert set(cell["agreement"]["differences"]) == set(VARIANTS)
    assert cell["agreement"]["reference"] == "float64"
    assert cell["agreement"]["tolerance"] == FIRST_STEP["cpu"]
    whole = cell["agreement"]["all_steps"]
    assert set(whole["differences"]) == set(VARIANTS) - {"eager_unroll_nchw"}
    assert whole["tolerance"] == ALL_STEPS["cpu"]


def test_a_variant_that_is_right_in_the_first_step_only_disagrees() -> None:
    def stops_early(problem: Problem) -> OuterGradient:
        return TRACED_VARIANTS["trajmatch"](problem.first(1))

    variants = {
        "eager_unroll_nchw": TRACED_VARIANTS["eager_unroll_nchw"],
        "trajmatch": stops_early,
    }
    found = outer.measure_cell(TINY, rounds=1, variants=variants)["agreement"]
    assert not found["agree"] and not found["all_steps"]["agree"]


@pytest.mark.slow
def test_the_compiler_computes_the_same() -> None:
    found = outer.measure_cell(TINY, rounds=1)
    assert found["rows"]["compiled_adjoint"]["status"] == "measured"
    assert found["agreement"]["agree"], found["agreement"]


def test_a_cell_holds_every_variant_and_is_json(cell: dict) -> None:
    assert json.loads(json.dumps(cell, allow_nan=False)) == cell
    assert set(cell) == {"size", "device", "rows", "agreement", "ratios", "gflops"}
    assert Size(**cell["size"]) == TINY
    assert list(cell["rows"]) == list(VARIANTS)
    for row in cell["rows"].values():
        assert row["status"] == "measured" and row["measured_at_n"] == [TINY.steps]
        assert len(row["seconds"]["rounds"]) == 3
        assert row["seconds"]["min"] == min(row["seconds"]["rounds"]) > 0


def test_ratios_and_rates_follow_from_the_times(cell: dict) -> None:
    median = {name: row["seconds"]["median"] for name, row in cell["rows"].items()}
    for ours in OURS:
        assert cell["ratios"][ours] == {
            baseline: min(median[name] for name in names) / median[ours]
            for baseline, names in BASELINES.items()
        }
    for name, rate in cell["gflops"].items():
        assert rate == pytest.approx(outer_flops(TINY) / median[name] / 1e9)


def test_a_baseline_that_does_not_fit_is_not_run() -> None:
    def fail(_: object) -> OuterGradient:
        raise AssertionError("it was run")

    found = outer.measure_cell(
        TINY,
        rounds=1,
        variants={"trajmatch": VARIANTS["trajmatch"], "eager_unroll_nchw": fail},
        memory={"eager_unroll_nchw": {"intercept": 1e9, "slope": 30e9}},
    )
    row = found["rows"]["eager_unroll_nchw"]
    assert row["status"] == "does_not_fit" and row["predicted_bytes"] == 61 * 10**9
    assert row["limit_bytes"] <= memory_module.LARGEST
    assert found["rows"]["trajmatch"]["status"] == "measured"
    assert found["ratios"] == {"trajmatch": {}}


def test_a_compiler_that_does_not_work_is_told() -> None:
    def fail(_: object) -> OuterGradient:
        raise RuntimeError("no compiler\nand a long explanation")

    found = outer.measure_cell(TINY, rounds=1, variants={**FAST, "compiled_adjoint": fail})
    row = found["rows"]["compiled_adjoint"]
    assert row == {"status": "unavailable", "reason": "RuntimeError: no compiler"}
    assert set(found["ratios"]["trajmatch"]) == {"eager_unroll"}
    with pytest.raises(RuntimeError, match="no compiler"):
        outer.measure_cell(TINY, rounds=1, variants={"trajmatch": fail})


def test_a_variant_is_left_out_with_the_reason() -> None:
    found = outer.measure_cell(TINY, rounds=1, variants=FAST, leave_out={"eager_unroll_nchw": "no"})
    assert found["rows"]["eager_unroll_nchw"] == {"status": "left_out", "reason": "no"}


def test_a_problem_is_the_same_every_time() -> None:
    one, other = (make_problem(TINY) for _ in range(2))
    assert torch.equal(one.images, other.images) and torch.equal(one.start, other.start)
    assert torch.equal(one.first(1).batches, one.batches[:1])


# --- memory


def test_memory_is_predicted_by_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def peak(size: Size, variant: str, device: str) -> dict[str, int]:
        return {"peak_bytes": 1000 + 7 * size.steps, "idle_bytes": 10}

    monkeypatch.setattr(memory_module, "measure_peak", peak)
    found = memory_module.memory_over_steps(TINY, "trajmatch", "cpu", (1, 3))
    assert [each["peak_bytes"] for each in found["peaks"]] == [1007, 1021]
    assert memory_module.predicted_bytes(found, 80) == 1560


def test_what_does_not_run_has_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "measure_peak", lambda *_: {"unavailable": "why"})
    found = memory_module.memory_over_steps(TINY, "compiled_adjoint", "cpu")
    assert found == {"unavailable": "why"}


def test_memory_is_that_of_a_process_of_its_own() -> None:
    ballast = torch.ones(2**28, dtype=torch.uint8)
    found = memory_module.measure_peak(TINY, "trajmatch", "cpu")
    assert 0 < found["idle_bytes"] <= found["peak_bytes"] < 2**30
    assert len(ballast) > found["peak_bytes"] - found["idle_bytes"]


def test_a_process_that_fails_is_an_error() -> None:
    with pytest.raises(UserError, match="ended with status 1"):
        list(outer.measure_cells([TINY], device="nowhere"))


# --- experts and rates


@pytest.mark.parametrize("kind", KINDS)
def test_both_expert_loops_reach_the_same_parameters(kind: str) -> None:
    record = measure_expert(4, 6, steps=2, rounds=2, threads=1, image_size=8, depth=1, kind=kind)
    assert record["agree"] and max(record["differences"].values()) < 1e-5
    assert json.loads(json.dumps(record)) == record
    median = {name: each["median"] for name, each in record["seconds"].items()}
    eager = min(median["eager_nchw"], median["eager_nhwc"])
    assert record["ratio"] == eager / median["trajmatch"]


RATES = partial(machine_rates, sides=(8,), convolution=(2, 1), vector=16)


def test_rates_are_positive_and_the_best_is_told() -> None:
    rates = RATES("cpu")
    assert rates["product_gflops"] == max(rates["products"].values()) > 0
    assert rates["copy_gbps"] > 0 and min(rates["vector_gbps"].values()) > 0
    assert torch.get_float32_matmul_precision() == "highest"


# --- tables


def made_up(width: int, ours: float, eager: float, agree: bool = True) -> dict:
    rows = {
        "trajmatch": {"status": "measured", "seconds": summary([ours])},
        "eager_unroll_nchw": {"status": "extrapolated", "seconds": summary([eager])},
        "func_adjoint": {"status": "does_not_fit", "reason": "needs 31.0 GB of 13.0 GB [here]"},
    }
    return {
        "size": {"width": width, "batch": 11, "steps": 7},
        "rows": rows,
        "agreement": {"agree": agree, "differences": {"func_adjoint": {"loss": 0.5}}},
        "ratios": outer.ratios(rows),
        "gflops": {"trajmatch": 456.0},
    }


def test_the_table_shows_the_record() -> None:
    line = next(
        line
        for line in printed(tables.outer_table([made_up(32, 0.0123, 0.0984)])).splitlines()
        if "32, 11, 7" in line
    )
    for text in ("12.3", "~98.4 (8.0x)", "does not fit", "456"):
        assert text in line


def test_tables_fit_a_terminal_of_80_columns() -> None:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(tables.outer_table([made_up(128, 1.234, 9.876)]))
    text = capture.get()
    assert "…" not in text and "128, 11, 7" in text and "~9876 (8.0x)" in text


def test_the_agreement_is_told() -> None:
    differences = {"func_adjoint": {"images": 3e-4}, "trajmatch": {"images": 1e-6}}
    for agree, word in ((True, "agree"), (False, "DISAGREE")):
        line = tables.agreement_line([{"agreement": {"agree": agree, "differences": differences}}])
        assert f"results {word}: " in line and "3e-04" in line


def test_notes_say_what_is_missing_and_what_disagrees() -> None:
    notes = tables.notes([made_up(32, 1, 2), made_up(64, 1, 2, agree=False)])
    lines = printed(*notes).split("64, 11, 7: ")
    assert lines[0].strip() == (
        "32, 11, 7: func adjoint does not fit: needs 31.0 GB of 13.0 GB [here]"
    )
    assert len(notes) == 3 and lines[2].startswith("the variants disagree")


def test_worst_ratio_and_geometric_mean() -> None:
    cells = [made_up(32, 1.0, 2.0), made_up(64, 1.0, 8.0)]
    assert tables.ratio_summary(cells) == {
        "trajmatch": {
            "eager_unroll": {"worst": 2.0, "geometric_mean": pytest.approx(4.0), "cells": 2}
        }
    }
    assert "2.00x" in printed(tables.ratio_table(cells))
    assert "4.00x" in printed(tables.ratio_table(cells))


# --- the command


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command with tiny parts and no processes."""
    tiny_expert = {"steps": 2, "rounds": 1, "image_size": 8, "depth": 1}
    memory = {"steps": [1, 3], "intercept": 2e9, "slope": 1e6}
    memory["peaks"] = [{"peak_bytes": 2.001e9}, {"peak_bytes": 2.003e9}]
    monkeypatch.setattr(machine, "machine_rates", RATES)
    monkeypatch.setattr(machine, "memory_over_steps", lambda *_: dict(memory))
    monkeypatch.setattr(
        machine, "measure_expert", lambda width, **_: measure_expert(width, 6, **tiny_expert)
    )
    monkeypatch.setattr(machine, "measure_cell", partial(outer.measure_cell, variants=FAST))


ARGUMENTS = ["--sizes", "4,2,2", "--rounds", "1", "--seconds", "1"]


def test_the_command_prints_tables(small: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert machine.main(ARGUMENTS) == 0
    text = capsys.readouterr().out
    for title in ("Outer iteration", "Expert step", "Peak memory", "Rates"):
        assert title in text
    assert "2.08 GB" in text  # of 80 steps, on the line
    assert "GFLOP/s" in text and "GB/s" in text


def test_the_command_prints_the_record(small: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert machine.main([*ARGUMENTS, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert set(record) == {
        *("machine", "origin", "rates", "cells", "summary", "memory", "experts", "seconds")
    }
    assert record["machine"]["torch"] == torch.__version__
    assert record["cells"][0]["rows"]["trajmatch"]["status"] == "measured"


@pytest.mark.parametrize(("allowed", "compiles"), [(10.0, False), (100.0, True)])
def test_slow_baselines_take_part_where_there_is_time(allowed: float, compiles: bool) -> None:
    left_out = machine.within(allowed, 77)["leave_out"]
    assert set(left_out) == (set() if compiles else {"compiled_adjoint", "func_adjoint"})
    assert all("--seconds more than 77" in reason for reason in left_out.values())


def test_results_that_disagree_are_a_failure(
    small: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(problem: object) -> OuterGradient:
        right = VARIANTS["trajmatch"](problem)  # type: ignore[arg-type]
        return right._replace(images=1.1 * right.images)

    variants = {**FAST, "trajmatch": wrong}
    monkeypatch.setattr(machine, "measure_cell", partial(outer.measure_cell, variants=variants))
    assert machine.main(ARGUMENTS) == 1
    assert "the variants disagree" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seconds", "0"], "--seconds should be positive"),
        (["--seconds", "nan"], "--seconds should be positive"),
        (["--rounds", "0"], "--rounds should be at least 1"),
        (["--sizes", "4,2"], "--sizes should be width,batch,N"),
        (["--device", "nowhere"], "--device should be auto, cpu, cuda or cuda:N, but is 'nowhere'"),
    ],
)
def test_a_wrong_argument_is_a_message(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert machine.main(arguments) == 2
    assert message in capsys.readouterr().err
