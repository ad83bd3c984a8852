"""Charts as SVG inside of the page: their colours come from its style, so that they follow it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trajmatch.report.axes import Axis, fitting, labels, whole_ticks, width_of, written
from trajmatch.report.html import Html, element, join

_WIDTH, _HEIGHT = 480, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 458, 10, 205
#: Room on the left for the label of the y axis; its numbers end so far from the axis.
_LABEL, _GAP = 24, 6
#: A histogram has at most so many bars; of more numbers several share one.
_BARS = 40


@dataclass(frozen=True)
class Curve:
    """Points that belong together.

    Attributes:
        name: For the legend.
        kind: Class of the style sheet: ``raw``, or ``first`` to ``fourth``.
        points: ``(x, y)``, x ascending; at a y of None the line is broken.
        errors: Half the length of each point's error bar; with it every point has a mark.
    """

    name: str
    kind: str
    points: Sequence[tuple[float, float | None]]
    errors: Sequence[float] | None = None


@dataclass(frozen=True)
class Level:
    """A number to compare with, drawn across.

    Attributes:
        name: For the legend.
        kind: As of a :class:`Curve`.
        value: The number.
    """

    name: str
    kind: str
    value: float


def line_chart(
    curves: Sequence[Curve],
    levels: Sequence[Level] = (),
    *,
    x_label: str,
    y_label: str,
    description: str,
) -> Html:
    """Curves over the iterations.

    Args:
        curves: The later lie upon the earlier. One point at least has a y.
        levels: Drawn across, broken.
        x_label: What x is.
        y_label: What y is.
        description: What is to be seen, for those who do not see it.

    Returns:
        A figure with a legend.
    """
    points = [point for curve in curves for point in curve.points]
    ys = [y for _, y in points if y is not None] + [level.value for level in levels]
    for curve in curves:
        for (_, y), error in zip(curve.points, curve.errors or (), strict=False):
            ys += [] if y is None else [y - error, y + error]
    xs = [x for x, _ in points]
    y_axis = fitting(ys, _BOTTOM, _TOP)
    last = max(xs) if max(xs) > min(xs) else min(xs) + 1
    x_axis = Axis(min(xs), last, _left(y_axis), _RIGHT)
    drawn = [
        _frame(x_axis, y_axis, whole_ticks(x_axis, _WIDTH, 5), x_label, y_label),
        *(_level(level, x_axis, y_axis) for level in levels),
        *(_curve(curve, x_axis, y_axis) for curve in curves),
    ]
    legend = [
        element("li", element("span", class_=f"key {each.kind} {shape}"), each.name)
        for each, shape in [(c, "solid") for c in curves] + [(level, "broken") for level in levels]
    ]
    return _figure(drawn, description, element("ul", *legend, class_="legend"))


def histogram(counts: Mapping[int, int], *, x_label: str, description: str) -> Html:
    """How often each whole number came.

    Args:
        counts: Of each number, how often; one at least.
        x_label: What the numbers are.
        description: What is to be seen, for those who do not see it.

    Returns:
        A figure. Where there are many numbers, several of them share a bar.
    """
    low, high = min(counts), max(counts)
    size = -(-(high - low + 1) // _BARS)
    bars = [0] * ((high - low) // size + 1)
    for number, count in counts.items():
        bars[(number - low) // size] += count
    y_axis = Axis(0, 1.06 * max(bars), _BOTTOM, _TOP)
    x_axis = Axis(low - 0.5, low + len(bars) * size - 0.5, _left(y_axis), _RIGHT)
    drawn = [_frame(x_axis, y_axis, whole_ticks(x_axis, _WIDTH, 8), x_label, "draws")]
    for index, count in enumerate(bars):
        first = low + index * size
        last = first + size - 1
        left, right = x_axis.place(first - 0.5), x_axis.place(last + 0.5)
        top = y_axis.place(count)
        what = f"{first}" if size == 1 else f"{first} to {last}"
        drawn.append(
            element(
                "rect",
                element("title", f"{x_label} {what}: {count}"),
                class_="bar",
                x=round(left + 0.1 * (right - left), 1),
                y=top,
                width=round(0.8 * (right - left), 1),
                height=round(_BOTTOM - top, 1),
            )
        )
    return _figure(drawn, description)


def thinned(
    xs: Sequence[float], ys: Sequence[float | None], bins: int = 300
) -> list[tuple[float, float | None]]:
    """A curve with fewer points in which every extreme is kept.

    Args:
        xs: Ascending.
        ys: One for each; None is a gap.
        bins: Of each of so many equal parts the lowest and the highest point are kept, in order.

    Returns:
        Points, all of them where they are few.
    """
    points = [*zip(xs, ys, strict=True)]
    size = math.ceil(len(points) / bins)
    if size <= 2:
        return points
    kept: list[tuple[float, float | None]] = []
    for begin in range(0, len(points), size):
        part = [(x, y) for x, y in points[begin : begin + size] if y is not None]
        if not part:
            kept.append((points[begin][0], None))
            continue
        ends = {min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])}
        kept += sorted(ends)
    return kept


def smoothed(ys: Sequence[float | None], window: int) -> list[float | None]:
    """The mean over a window around each value.

    Args:
        ys: Values; None counts for nothing.
        window: Values in the window; fewer at both ends.

    Returns:
        One for each; None where the window has no value.
    """
    before, after = (window - 1) // 2, window // 2
    sums, counts = [0.0], [0]
    for y in ys:
        sums.append(sums[-1] + (y or 0.0))
        counts.append(counts[-1] + (y is not None))
    means: list[float | None] = []
    for index in range(len(ys)):
        begin, end = max(0, index - before), min(len(ys), index + after + 1)
        count = counts[end] - counts[begin]
        means.append((sums[end] - sums[begin]) / count if count else None)
    return means


def _figure(drawn: Sequence[Html], description: str, *below: Html) -> Html:
    svg = element(
        "svg",
        *drawn,
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        role="img",
        aria_label=description,
    )
    return element("figure", svg, element("figcaption", description, *below))


def _left(y_axis: Axis) -> float:
    """Left end of the x axis, with room for the numbers at the y axis."""
    widest = max(map(width_of, labels(y_axis.ticks)))
    return max(_LEFT, round(_LABEL + widest + _GAP, 1))


def _frame(
    x_axis: Axis, y_axis: Axis, x_ticks: Sequence[tuple[float, str]], x_label: str, y_label: str
) -> Html:
    parts = []
    left = x_axis.begin
    for tick, label in zip(y_axis.ticks, labels(y_axis.ticks), strict=True):
        y = y_axis.place(tick)
        parts.append(_line("grid", left, y, _RIGHT, y))
        parts.append(_text(label, left - _GAP, y + 4, "end"))
    for x, label in x_ticks:
        parts.append(_line("axis", x, _BOTTOM, x, _BOTTOM + 4))
        parts.append(_text(label, x, _BOTTOM + 18, "middle"))
    middle = (_TOP + _BOTTOM) / 2
    parts += [
        _line("axis", left, _BOTTOM, _RIGHT, _BOTTOM),
        _text(x_label, round((left + _RIGHT) / 2, 1), _HEIGHT - 8, "middle"),
        _text(y_label, 13, middle, "middle", transform=f"rotate(-90 13 {middle})"),
    ]
    return element("g", *parts)


def _curve(curve: Curve, x_axis: Axis, y_axis: Axis) -> Html:
    commands, drawing = [], False
    marks = []
    for number, (x, y) in enumerate(curve.points):
        if y is None:
            drawing = False
            continue
        place = x_axis.place(x), y_axis.place(y)
        commands.append(f"{'L' if drawing else 'M'}{place[0]:g} {place[1]:g}")
        drawing = True
        if curve.errors is not None:
            ends = (y_axis.place(y + sign * curve.errors[number]) for sign in (-1, 1))
            bar = _line(f"{curve.kind} error", place[0], next(ends), place[0], next(ends))
            title = element("title", f"{written(x)}: {y:.1f} ± {curve.errors[number]:.1f}")
            circle = element(
                "circle", title, class_=f"{curve.kind} mark", cx=place[0], cy=place[1], r=4
            )
            marks += [bar, circle]
    path = element("path", class_=f"{curve.kind} curve", d="".join(commands))
    return join(path, *marks)


def _level(level: Level, x_axis: Axis, y_axis: Axis) -> Html:
    y = y_axis.place(level.value)
    return _line(f"{level.kind} level", x_axis.begin, y, _RIGHT, y)


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Html:
    return element("line", class_=kind, x1=x1, y1=y1, x2=x2, y2=y2)


def _text(content: str, x: float, y: float, anchor: str, **attributes: object) -> Html:
    return element("text", content, x=x, y=y, text_anchor=anchor, **attributes)
