"""Records as tables for a reader. Every number comes from the record."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from bench.variants import BASELINES, OURS

#: Statuses that are shown instead of a time; the others are explained below the table.
SHORT = {
    "does_not_fit": "does not fit",
    "unavailable": "does not run",
    "left_out": "left out",
    "not_linear": "unsure",
}


def outer_table(cells: Sequence[dict[str, Any]]) -> Table:
    """Times of the outer iteration with ratios: a row for each cell, a column for each baseline.

    Args:
        cells: Cells of a record, see :func:`bench.outer.measure_cell`.

    Returns:
        The table. A time that was extrapolated is marked ``~``, a cell whose variants disagree
        ``!``. Operations are counted at nine forward passes for each image and step.
    """
    table = _table("Outer iteration at width, batch, N: median ms (ratio to trajmatch)", "size")
    for name in ("trajmatch", "tape", *(name.partition("_")[0] for name in BASELINES), "GF/s"):
        table.add_column(name, justify="right", no_wrap=True)
    for cell in cells:
        ratios = cell["ratios"].get("trajmatch", {})
        mark = "" if cell["agreement"]["agree"] else "!"
        table.add_row(
            _where(cell) + mark,
            *(_time([cell["rows"].get(name, {})]) for name in OURS),
            *(
                _time([cell["rows"].get(name, {}) for name in names])
                + (f" ({ratios[baseline]:.1f}x)" if baseline in ratios else "")
                for baseline, names in BASELINES.items()
            ),
            f"{cell['gflops']['trajmatch']:.0f}" if "trajmatch" in cell["gflops"] else "",
        )
    return table


def ratio_summary(cells: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Worst ratio and geometric mean over cells, of each of ours against each baseline.

    Args:
        cells: Cells of a record.

    Returns:
        By variant and baseline ``worst``, ``geometric_mean`` and ``cells``, how many have a ratio.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for ours in OURS:
        for baseline in BASELINES:
            ratios = [
                cell["ratios"][ours][baseline]
                for cell in cells
                if baseline in cell["ratios"].get(ours, {})
            ]
            if ratios:
                found.setdefault(ours, {})[baseline] = {
                    "worst": min(ratios),
                    "geometric_mean": exp(sum(map(log, ratios)) / len(ratios)),
                    "cells": len(ratios),
                }
    return found


def ratio_lines(cells: Sequence[dict[str, Any]]) -> list[str]:
    """Format :func:`ratio_summary`, a line for each baseline."""
    return [
        f"{ours} against {baseline}: worst {numbers['worst']:.2f}x, geometric mean "
        f"{numbers['geometric_mean']:.2f}x of {numbers['cells']} cells"
        for ours, baselines in ratio_summary(cells).items()
        for baseline, numbers in baselines.items()
    ]


def memory_lines(memory: dict[str, Any]) -> list[str]:
    """Format :func:`bench.memory.memory_of`, a line for each variant."""
    size, many = memory["size"], memory["predicted_at"]
    lines = []
    for name, each in memory["variants"].items():
        found = "does not run"
        if "unavailable" not in each:
            peaks = zip(each["steps"], each["peaks"], strict=True)
            found = ", ".join(f"{peak['peak_bytes'] / 1e9:.2f} GB at N = {n}" for n, peak in peaks)
            found += f"; {each['predicted_bytes'] / 1e9:.2f} GB predicted at {many}"
        lines.append(f"peak memory, {size['width']}, {size['batch']}, {name}: {found}")
    return lines


def rate_lines(rates: dict[str, Any], cells: Sequence[dict[str, Any]]) -> list[str]:
    """Format what the machine can do beside what was reached, a line each."""
    products = {"best matrix product or convolution of PyTorch": rates["product_gflops"]}
    for cell in cells:
        if "trajmatch" in cell["gflops"]:
            name = f"outer iteration {_where(cell)} at 9F"
            products[name] = cell["gflops"]["trajmatch"]
    bytes_moved = {"copy": rates["copy_gbps"], **rates["vector_gbps"]}
    return [
        *(f"{name}: {rate:.0f} GFLOP/s" for name, rate in products.items()),
        *(f"{name}: {rate:.1f} GB/s" for name, rate in bytes_moved.items()),
    ]


def notes(cells: Sequence[dict[str, Any]]) -> list[str]:
    """Why a time is missing, and which cells disagree: a line each."""
    lines = []
    for cell in cells:
        where = _where(cell)
        lines += [
            f"{where}: {name.replace('_', ' ')} {SHORT[row['status']]}: {escape(row['reason'])}"
            for name, row in cell["rows"].items()
            if row["status"] in SHORT
        ]
        if not cell["agreement"]["agree"]:
            found = [cell["agreement"], cell["agreement"].get("all_steps", {})]
            differences = " and ".join(str(each["differences"]) for each in found if each)
            lines.append(f"{where}: the variants disagree: {differences}")
    return lines


def agreement_line(cells: Sequence[dict[str, Any]]) -> str:
    """How well the results of all variants agree."""
    worst = max(
        (
            found["images"]
            for cell in cells
            for found in cell["agreement"]["differences"].values()
            if "images" in found
        ),
        default=0.0,
    )
    verdict = "agree" if all(cell["agreement"]["agree"] for cell in cells) else "DISAGREE"
    return (
        f"Timed in alternating rounds of one process. The results {verdict}: the images' gradients "
        f"to {worst:.0e}, as vectors."
    )


def _where(cell: dict[str, Any]) -> str:
    size = cell["size"]
    return f"{size['width']}, {size['batch']}, {size['steps']}"


def _table(title: str, first: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0)
    table.add_column(first, no_wrap=True)
    return table


def _time(rows: Sequence[dict[str, Any]]) -> str:
    """The fastest of the rows, or what it is for."""
    timed = [row for row in rows if "seconds" in row]
    if not timed:
        return next((SHORT[row["status"]] for row in rows if row), "")
    best = min(timed, key=lambda row: row["seconds"]["median"])
    mark = "~" if best["status"] == "extrapolated" else ""
    return mark + _milliseconds(best["seconds"]["median"])


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g}" if seconds < 1 else f"{1000 * seconds:.0f}"
