"""Axes and charts."""

from __future__ import annotations

import itertools
import math
import re
import xml.etree.ElementTree as ET
from collections import Counter

import pytest

from trajmatch.report.axes import CHARACTER, Axis, fitting, round_numbers, written
from trajmatch.report.charts import Curve, Level, histogram, line_chart, smoothed, thinned

LABELS = {"x_label": "iteration", "y_label": "loss", "description": "what is to be seen"}


def drawn(figure: str) -> ET.Element:
    """The figure as XML, which is stricter than HTML."""
    return ET.fromstring(figure)


def path_of(figure: str, kind: str) -> str:
    (path,) = drawn(figure).findall(f".//path[@class='{kind} curve']")
    return path.attrib["d"]


def places(path: str) -> list[tuple[float, float]]:
    numbers = [*map(float, re.findall(r"-?[\d.]+", path))]
    return [*zip(numbers[::2], numbers[1::2], strict=True)]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 100, [0, 20, 40, 60, 80, 100]),
        (0.21, 1.49, [0.4, 0.6, 0.8, 1.0, 1.2, 1.4]),
        (-3, 3, [-3, -2, -1, 0, 1, 2, 3]),
        (1, 5000, [1000, 2000, 3000, 4000, 5000]),
    ],
)
def test_ticks_are_round_numbers_inside(low, high, expected) -> None:
    assert round_numbers(low, high) == pytest.approx(expected)


@pytest.mark.parametrize("power", [-30, -3, 0, 4, 60])
@pytest.mark.parametrize("high", [1.1, 1.7, 3.3, 9.9])
def test_ticks_are_few_at_any_size(power, high) -> None:
    ticks = round_numbers(1.0 * 10.0**power, high * 10.0**power)
    assert 2 <= len(ticks) <= 8
    assert len({written(tick) for tick in ticks}) == len(ticks)


def test_numbers_far_apart_are_on_a_logarithmic_axis() -> None:
    axis = fitting([0.01, 1.0, 1000.0], 200, 0)
    assert axis.log and axis.ticks == [0.01, 0.1, 1.0, 10.0, 100.0, 1000.0]
    steps = [axis.place(10.0**power) for power in (-2, 0, 2)]
    assert steps[0] - steps[1] == pytest.approx(steps[1] - steps[2], abs=0.2)
    assert not fitting([-1.0, 1000.0], 200, 0).log
    assert not fitting([0.0, 1000.0], 200, 0).log


@pytest.mark.parametrize("values", [[0.0], [5.0], [-2.0, -2.0], [1.0, 1.0 + 1e-15], [1e99, -1e99]])
def test_every_axis_has_an_extent(values) -> None:
    axis = fitting(values, 200, 0)
    assert axis.low < min(values) or axis.low == 0 == min(values) or axis.low == 0
    assert axis.high > max(values)
    for value in values:
        assert 0 <= axis.place(value) <= 200
    assert len({written(tick) for tick in axis.ticks}) >= 2


def test_a_curve_is_where_its_numbers_are_and_broken_where_one_is_missing() -> None:
    points = [(0, 1.0), (1, 2.0), (2, None), (3, 3.0), (4, 1.0)]
    path = path_of(line_chart([Curve("a", "first", points)], **LABELS), "first")
    assert re.sub(r"[\d. -]+", "", path) == "MLML"
    (x0, y0), (x1, y1), (x3, y3), (x4, y4) = places(path)
    assert x0 < x1 < x3 < x4 and x4 - x3 == pytest.approx(x1 - x0, abs=0.2)
    assert y0 == y4 > y1 > y3  # up is a smaller number in SVG


def test_error_bars_and_levels() -> None:
    curve = Curve("accuracy", "first", [(1, 50.0), (2, 60.0)], errors=[1.0, 4.0])
    figure = drawn(line_chart([curve], [Level("random & real", "second", 20.0)], **LABELS))
    bars = figure.findall(".//line[@class='first error']")
    lengths = [float(bar.attrib["y1"]) - float(bar.attrib["y2"]) for bar in bars]
    assert lengths[1] == pytest.approx(4 * lengths[0], abs=0.4)
    titles = [title.text for title in figure.findall(".//circle/title")]
    assert titles == ["1: 50.0 ± 1.0", "2: 60.0 ± 4.0"]
    (level,) = figure.findall(".//line[@class='second level']")
    assert float(level.attrib["y1"]) > float(bars[0].attrib["y1"])
    legend = ["".join(item.itertext()) for item in figure.findall(".//li")]
    assert legend == ["accuracy", "random & real"]


def test_a_chart_of_one_point() -> None:
    figure = drawn(line_chart([Curve("a", "first", [(7, 0.5)])], **LABELS))
    assert figure.find(".//svg").attrib["aria-label"] == "what is to be seen"


def test_a_histogram_has_a_bar_for_each_number() -> None:
    figure = drawn(histogram(Counter({3: 2, 5: 8}), x_label="epoch", description="draws"))
    titles = [title.text for title in figure.findall(".//rect/title")]
    assert titles == ["epoch 3: 2", "epoch 4: 0", "epoch 5: 8"]
    heights = [float(bar.attrib["height"]) for bar in figure.findall(".//rect")]
    assert heights[1] == 0 and heights[2] == pytest.approx(4 * heights[0], abs=0.5)


def test_a_histogram_of_many_numbers_has_fewer_bars() -> None:
    counts = Counter({number: 1 for number in range(10, 110)})
    figure = drawn(histogram(counts, x_label="expert", description="draws"))
    titles = [title.text for title in figure.findall(".//rect/title")]
    assert titles[0] == "expert 10 to 12: 3" and len(titles) == 34
    assert sum(int(title.rsplit(" ", 1)[1]) for title in titles) == 100
    wide = histogram(Counter({0: 1, 2**31 - 1: 1}), x_label="expert", description="draws")
    assert len(drawn(wide).findall(".//rect")) <= 40


def test_the_mean_over_a_window() -> None:
    assert smoothed([1.0, 2.0, 6.0, 4.0], 3) == [1.5, 3.0, 4.0, 5.0]
    assert smoothed([1.0, None, 3.0], 3) == [1.0, 2.0, 3.0]
    assert smoothed([1.0, None, 3.0], 1) == [1.0, None, 3.0]


def test_a_thinned_curve_keeps_every_extreme() -> None:
    ys = [math.sin(x / 300) + (5 if x == 4321 else 0) for x in range(10_000)]
    points = thinned(range(10_000), ys, bins=100)
    assert len(points) <= 200
    assert (4321, ys[4321]) in points
    assert min(y for _, y in points) == min(ys)
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert thinned([1, 2], [0.5, None], bins=100) == [(1, 0.5), (2, None)]


def test_a_thinned_curve_keeps_its_gaps() -> None:
    points = thinned(range(1000), [None if 100 <= x < 300 else 1.0 for x in range(1000)], bins=10)
    assert [x for x, y in points if y is None] == [100, 200]


def test_axis_ends_are_where_they_should_be() -> None:
    assert Axis(0, 10, 60, 460).place(5) == 260


# --- labels


def boxes(figure: str) -> list[tuple[float, float, float, float, str]]:
    """Left, top, right and bottom of every text, as wide as the usual fonts make it at most."""
    found = []
    for text in drawn(figure).iter("text"):
        place, shown = {name: text.attrib[name] for name in ("x", "y")}, "".join(text.itertext())
        x, y, width = float(place["x"]), float(place["y"]), CHARACTER * len(shown)
        part = {"end": 1.0, "middle": 0.5, "start": 0.0}[text.attrib["text-anchor"]]
        if "transform" in text.attrib:  # turned by a quarter around its place
            found.append((x - 10, y - width / 2, x + 3, y + width / 2, shown))
        else:
            found.append((x - part * width, y - 10, x + (1 - part) * width, y + 3, shown))
    return found


def check_labels(figure: str) -> None:
    """No text lies over another one, or beyond the picture."""
    svg = next(drawn(figure).iter("svg"))
    _, _, width, height = map(float, svg.attrib["viewBox"].split())
    placed = boxes(figure)
    for left, top, right, bottom, text in placed:
        assert left >= 0 and top >= 0 and right <= width and bottom <= height, text
    for one, other in itertools.combinations(placed, 2):
        beside = one[2] <= other[0] or other[2] <= one[0]
        above = one[3] <= other[1] or other[3] <= one[1]
        assert beside or above, (one[4], other[4])
    assert sum(text.attrib["y"] == "223" for text in drawn(figure).iter("text")) >= 1
    assert len({*placed}) == len(placed) >= 5


@pytest.mark.parametrize(
    "values",
    [
        (0.0, 1.0),
        (0.9331, 1.0671),
        (1e-7, 3e-6),
        (0.00120512, 0.00120519),
        (12345.678, 12345.679),
        (-2000.5, 1e6),
        (1e-5, 1e9),
        (1e97, -1e97),
        (6.5e9, 6.6e9),
        (-1.0, -1.0 - 1e-7),
    ],
)
@pytest.mark.parametrize("last", [1, 2, 9, 40, 1000, 99_999, 5_000_000, 2**31])
def test_labels_of_a_line_chart_do_not_overlap(values: tuple[float, float], last: int) -> None:
    labels = {"x_label": "outer iteration", "y_label": "matching loss L", "description": ""}
    curve = Curve("a", "first", [(1, values[0]), (max(last, 2), values[1])])
    check_labels(line_chart([curve], **labels))


@pytest.mark.parametrize(
    "numbers", [[0], [7], [0, 1], [0, 19], [3, 88], [0, 99], [900, 1200], [0, 10**6], [2**31 - 9]]
)
@pytest.mark.parametrize("count", [1, 12, 99_999, 10**9])
def test_labels_of_a_histogram_do_not_overlap(numbers: list[int], count: int) -> None:
    figure = histogram(dict.fromkeys(numbers, count), x_label="start epoch", description="")
    check_labels(figure)
