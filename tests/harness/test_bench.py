"""The measuring code of the benchmarks: counts, fits, cells and tables, at tiny sizes."""

from __future__ import annotations

import json
from argparse import ArgumentTypeError
from functools import partial

import pytest
import torch
from bench import memory as memory_module
from bench import outer, tables
from bench.agreement import FIRST_STEP, agreement
from bench.expert import KINDS, measure_expert
from bench.flops import forward_flops, outer_flops
from bench.program import line
from bench.rates import machine_rates
from bench.sizes import GRID, HEADLINE, TINY, Size, parse_size
from bench.timing import alternate, fit_line, summary
from bench.variants import BASELINES, OURS, TRACED_VARIANTS, VARIANTS, OuterGradient
from rich.console import Console

from trajmatch.errors import UserError
from trajmatch.networks import ConvNet

pytestmark = pytest.mark.harness

FAST = {name: VARIANTS[name] for name in ("trajmatch", "eager_unroll_nchw")}


# --- sizes and counts


def test_the_grid_is_the_whole_grid() -> None:
    assert len(GRID) == len(set(GRID)) == 36
    work = [size.width**2 * size.batch for size in GRID]
    assert work == sorted(work)


def test_a_size_is_read_from_its_key() -> None:
    for size in HEADLINE:
        assert parse_size(size.key) == size
    for text in ("", "32", "32,10", "32,10,x", "32,10,0", "32,10,-1", "1,2,3,4"):
        with pytest.raises(ArgumentTypeError, match="width,batch,N"):
            parse_size(text)


def test_operations_equal_a_count_by_hand() -> None:
    convolution = 2 * (9 * 3) * (4 * 8 * 8)  # taps and channels in, for each output
    linear = 2 * (4 * 4 * 4) * 10
    assert forward_flops(ConvNet(3, 10, 8, width=4, depth=1)) == convolution + linear
    assert outer_flops(TINY) == 9 * (convolution + linear) * 3 * 2
    convolutions = 27 * 1024 * 128 + 9 * 128**2 * (256 + 64)
    assert forward_flops(ConvNet(3, 10, 32)) == 2 * (convolutions + 128 * 16 * 10)


# --- times


def test_rounds_alternate_and_begin_with_another_function_each() -> None:
    calls: list[str] = []
    taken = alternate({name: partial(calls.append, name) for name in "abc"}, rounds=3)
    assert "".join(calls) == "abcbcacab"
    assert all(len(rounds) == 3 and min(rounds) >= 0 for rounds in taken.values())


def test_a_line_predicts_what_is_linear() -> None:
    line = fit_line([2, 4, 8], [5 + 3 * n for n in (2, 4, 8)])
    assert line.at(80) == pytest.approx(5 + 3 * 80)
    assert line.error < 1e-12
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


# --- agreement


def result(loss: float = 1.0, image: float = 1.0) -> OuterGradient:
    images = torch.ones(5, 1, 2, 2)
    images[0] = image
    return OuterGradient(torch.tensor(loss), images, torch.tensor(2.0))


@pytest.mark.parametrize(
    ("other", "agrees"),
    [
        (result(), True),
        (result(image=1.005), True),  # a ReLU that falls the other way
        (result(image=1.5), False),
        (result(loss=1.001), False),
        (result(loss=float("nan")), False),
    ],
)
def test_results_agree_up_to_rounding(other: OuterGradient, agrees: bool) -> None:
    found = agreement({"a": result(), "b": other}, "a", FIRST_STEP["cpu"])
    assert found["agree"] == agrees
    assert found["differences"]["b"]["images_median"] == 0


# --- cells


@pytest.fixture(scope="module")
def cell() -> dict:
    return outer.measure_cell(TINY, rounds=3, variants=TRACED_VARIANTS)


def test_all_variants_compute_the_same(cell: dict) -> None:
    assert cell["agreement"]["agree"], cell["agreement"]
    assert set(cell["agreement"]["differences"]) == set(VARIANTS)
    assert cell["agreement"]["reference"] == "float64"
    whole = cell["agreement"]["all_steps"]
    assert set(whole["differences"]) == set(VARIANTS) - {"eager_unroll_nchw"}


@pytest.mark.slow
def test_the_compiler_computes_the_same() -> None:
    found = outer.measure_cell(TINY, rounds=1)
    assert found["rows"]["compiled_adjoint"]["status"] == "measured"
    assert found["agreement"]["agree"], found["agreement"]


def test_a_cell_holds_every_variant_and_is_json(cell: dict) -> None:
    assert json.loads(json.dumps(cell, allow_nan=False)) == cell
    assert Size(**cell["size"]) == TINY
    assert list(cell["rows"]) == list(VARIANTS)
    median = {name: row["seconds"]["median"] for name, row in cell["rows"].items()}
    for ours in OURS:
        assert cell["ratios"][ours] == {
            baseline: min(median[name] for name in names) / median[ours]
            for baseline, names in BASELINES.items()
        }
    for name, rate in cell["gflops"].items():
        assert rate == pytest.approx(outer_flops(TINY) / median[name] / 1e9)


def test_a_baseline_that_does_not_fit_or_is_left_out_is_not_run() -> None:
    found = outer.measure_cell(
        TINY,
        rounds=1,
        variants=FAST,
        memory={"eager_unroll_nchw": {"intercept": 1e9, "slope": 30e9}},
    )
    row = found["rows"]["eager_unroll_nchw"]
    assert row["status"] == "does_not_fit" and row["predicted_bytes"] == 61 * 10**9
    assert row["limit_bytes"] <= memory_module.LARGEST
    assert found["rows"]["trajmatch"]["status"] == "measured"
    assert found["ratios"] == {"trajmatch": {}}
    found = outer.measure_cell(TINY, rounds=1, variants=FAST, leave_out={"eager_unroll_nchw": "no"})
    assert found["rows"]["eager_unroll_nchw"] == {"status": "left_out", "reason": "no"}


# --- memory, experts and rates


def test_memory_is_that_of_a_process_of_its_own() -> None:
    ballast = torch.ones(2**28, dtype=torch.uint8)
    found = memory_module.memory_over_steps(TINY, "trajmatch", "cpu", (1, 3))
    for peak in found["peaks"]:
        assert 0 < peak["idle_bytes"] <= peak["peak_bytes"] < 2**30
        assert len(ballast) > peak["peak_bytes"] - peak["idle_bytes"]
    line = {"intercept": 993, "slope": 7}
    assert memory_module.predicted_bytes(line, 80) == 993 + 7 * 80


def test_a_process_that_fails_is_an_error() -> None:
    with pytest.raises(UserError, match="ended with status 1"):
        list(outer.measure_cells([TINY], device="nowhere"))


@pytest.mark.parametrize("kind", KINDS)
def test_both_expert_loops_reach_the_same_parameters(kind: str) -> None:
    record = measure_expert(4, 6, 2, rounds=2, threads=1, image_size=8, depth=1, kind=kind)
    assert record["agree"] and max(record["differences"].values()) < 1e-5
    assert json.loads(json.dumps(record)) == record
    assert record["ratio"] == min(record["ratios"].values())
    assert line(record).startswith(f"expert step, {kind}, width 4")


def test_rates_are_positive_and_the_best_is_told() -> None:
    rates = machine_rates(sides=(8,), convolution=(2, 1), vector=16)
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
        "agreement": {"agree": agree, "differences": {"func_adjoint": {"images": 3e-4}}},
        "ratios": outer.ratios(rows),
        "gflops": {"trajmatch": 456.0},
    }


def test_the_table_shows_the_record_in_80_columns() -> None:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(tables.outer_table([made_up(128, 1.234, 9.876), made_up(32, 0.0123, 0.0984)]))
    text = capture.get()
    assert "…" not in text and "128, 11, 7" in text and "~9876 (8.0x)" in text
    (line,) = (line for line in text.splitlines() if "32, 11, 7" in line)
    for part in ("12.3", "~98.4 (8.0x)", "does not fit", "456"):
        assert part in line


def test_notes_say_what_is_missing_and_what_disagrees() -> None:
    first, *_, last = tables.notes([made_up(32, 1, 2), made_up(64, 1, 2, agree=False)])
    assert first == r"32, 11, 7: func adjoint does not fit: needs 31.0 GB of 13.0 GB \[here]"
    assert last.startswith("64, 11, 7: the variants disagree")
    assert "results agree: " in tables.agreement_line([made_up(32, 1, 2)])
    assert "results DISAGREE: " in tables.agreement_line([made_up(32, 1, 2, agree=False)])


def test_worst_ratio_and_geometric_mean() -> None:
    cells = [made_up(32, 1.0, 2.0), made_up(64, 1.0, 8.0)]
    assert tables.ratio_summary(cells) == {
        "trajmatch": {
            "eager_unroll": {"worst": 2.0, "geometric_mean": pytest.approx(4.0), "cells": 2}
        }
    }
    assert tables.ratio_lines(cells) == [
        "trajmatch against eager_unroll: worst 2.00x, geometric mean 4.00x of 2 cells"
    ]
