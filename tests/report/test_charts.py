"""Charts: readable, the same every time, and without a trace in matplotlib's global state."""

from __future__ import annotations

import base64
import itertools
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from trajmatch.report import charts
from trajmatch.report.charts import Curve, histogram, line_chart, smoothed

NAN = float("nan")


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn, kept to look at."""
    made: list[Figure] = []

    class Kept(Figure):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(charts, "Figure", Kept)
    return made


def accuracy_chart() -> charts.Chart:
    curve = Curve("distilled images (test)", [25, 50], [50.0, 60.0], errors=[1.0, 4.0])
    levels = {"random real images: 20.0": 20.0, "all real images: 90.0": 90.0}
    return line_chart([curve], "accuracy %", "<what> is to be seen", levels)


def svg(chart: charts.Chart) -> str:
    return base64.b64decode(chart.source.removeprefix("data:image/svg+xml;base64,")).decode()


def test_equal_numbers_equal_bytes_whatever_the_user_s_style() -> None:
    source = accuracy_chart().source
    before = {"font.size": 30.0, "svg.hashsalt": None, "svg.fonttype": "none", "axes.grid": True}
    with matplotlib.rc_context(before):
        assert accuracy_chart().source == source
        assert {name: matplotlib.rcParams[name] for name in before} == before
    assert accuracy_chart().description == "<what> is to be seen"


def test_a_chart_is_a_picture_that_loads_nothing() -> None:
    text = svg(accuracy_chart())
    for element in ET.fromstring(text).iter():
        assert element.tag.rpartition("}")[2] not in ("script", "image", "metadata", "a")
        for name, value in element.attrib.items():
            assert "href" not in name or value.startswith("#")
            assert "url(" not in value or "url(#" in value
    assert "date" not in text


def test_pyplot_is_not_needed() -> None:
    pyplot = sys.modules.get("matplotlib.pyplot")
    accuracy_chart()
    assert sys.modules.get("matplotlib.pyplot") is pyplot
    assert pyplot is None or not pyplot.get_fignums()


def test_curves_errors_and_levels_are_where_their_numbers_are(figures) -> None:
    accuracy_chart()
    (axes,) = figures[0].axes
    curve, *levels = axes.get_lines()
    assert curve.get_xydata().tolist() == [[25, 50], [50, 60]]
    assert [line.get_ydata() for line in levels] == [[20, 20], [90, 90]]
    (bars,) = axes.collections
    assert [bar[:, 1].tolist() for bar in bars.get_segments()] == [[49, 51], [56, 64]]
    (legend,) = figures[0].legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "distilled images (test)",
        "random real images: 20.0",
        "all real images: 90.0",
    ]


def test_a_histogram_has_a_bar_for_each_number_or_several(figures) -> None:
    histogram(Counter({3: 2, 5: 8}), "epoch", "")
    histogram(dict.fromkeys(range(10, 110), 1), "expert", "")
    histogram({0: 1, 2**31 - 1: 1}, "expert", "")
    few, many, wide = ([bar.get_height() for bar in each.axes[0].patches] for each in figures)
    assert few == [2, 0, 8]
    assert len(many) == 34 and sum(many) == 100
    assert len(wide) <= 40 and wide[0] == wide[-1] == 1


@pytest.mark.parametrize(
    ("values", "window", "means"),
    [
        ([1.0, 2.0, 6.0, 4.0], 3, [1.5, 3.0, 4.0, 5.0]),
        ([1.0, NAN, 3.0], 3, [1.0, 2.0, 3.0]),
        ([1.0, NAN, 3.0], 1, [1.0, NAN, 3.0]),
    ],
)
def test_the_mean_over_a_window(values, window: int, means) -> None:
    np.testing.assert_array_equal(smoothed(np.array(values), window), means)


def test_a_long_curve_is_drawn_with_few_bytes() -> None:
    noise = [0.5 + (31 * x % 101) / 500 for x in range(100_000)]
    assert len(svg(line_chart([Curve("a", range(100_000), noise)], "loss", "", {}))) < 200_000


def check_labels(figure: Figure) -> None:
    """No text lies over another one, or beyond the picture."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    (axes,) = figure.axes
    low, high = axes.get_xlim(), axes.get_ylim()
    texts = [axes.xaxis.label, axes.yaxis.label, axes.xaxis.offsetText, axes.yaxis.offsetText]
    for axis, (first, last) in ((axes.xaxis, low), (axes.yaxis, high)):
        shown = [tick for tick in axis.get_major_ticks() if first <= tick.get_loc() <= last]
        assert shown
        texts += [tick.label1 for tick in shown]
    texts += [text for legend in figure.legends for text in legend.get_texts()]
    boxes = [text.get_window_extent(renderer) for text in texts if text.get_text()]
    for box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0
        assert box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


@pytest.mark.parametrize(
    ("values", "last"),
    [
        ((0.0, 1.0), 1),
        ((0.00120512, 0.00120519), 40),
        ((12345.678, 12345.679), 2**31),
        ((-2000.5, 1e6), 99_999),
        ((1e-5, 1e9), 99_999),
        ((1e97, -1e97), 5_000_000),
        ((5.0, NAN), 9),
    ],
)
def test_labels_of_a_line_chart_do_not_overlap(figures, values, last: int) -> None:
    line_chart([Curve("a", [1, max(last, 2)], values)], "matching loss L", "", {"b": 3.0})
    check_labels(figures[0])


@pytest.mark.parametrize(
    ("numbers", "count"),
    [([0], 1), ([0, 19], 99_999), ([3, 88], 12), ([0, 10**6], 10**9), ([2**31 - 9], 1)],
)
def test_labels_of_a_histogram_do_not_overlap(figures, numbers: list[int], count: int) -> None:
    histogram(dict.fromkeys(numbers, count), "start epoch", "")
    check_labels(figures[0])


def test_a_backend_that_does_not_exist_is_named() -> None:
    program = "import torch, trajmatch.report.charts"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "MPLBACKEND": "none-of-these"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "UserError: matplotlib: Key backend: 'none-of-these'" in done.stderr
