"""SVG charts, drawn by matplotlib without its global state."""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trajmatch.errors import as_user_error
from trajmatch.report.parts import data_url

with as_user_error("matplotlib: "):  # the environment variable MPLBACKEND may be invalid
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

Numbers = NDArray[np.float64]

#: Ratio of largest to smallest value above which the y axis is logarithmic.
_LOG_RATIO = 50.0
#: Maximum number of histogram bars; a wider range puts several numbers into one bar.
_BARS = 40
PALE = "#9db4cf"
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "path.simplify_threshold": 1.0,
    "svg.hashsalt": "trajmatch",
}


class Chart(NamedTuple):
    """A chart as a picture, with a description."""

    source: str  # data URL; equal numbers give equal bytes
    description: str  # caption, also the text for screen readers


class Curve(NamedTuple):
    """A line of a chart; NaN in ``y`` is a gap."""

    name: str  # in the legend
    x: Sequence[float]  # ascending
    y: Numbers | Sequence[float]
    errors: Sequence[float] | None = None  # half the length of each error bar; None: no bars
    colour: str | None = None  # default: the next in matplotlib's cycle


def line_chart(
    curves: Sequence[Curve], y_label: str, description: str, levels: Mapping[str, float]
) -> Chart:
    """Draw curves over the outer iterations; at least one value must be finite.

    ``levels`` are named values, drawn as dashed horizontal lines.
    """

    def draw(axes: Axes) -> None:
        for curve in curves:
            (line,) = axes.plot(curve.x, curve.y, color=curve.colour, label=curve.name)
            # A curve of one point is invisible without a marker.
            if curve.errors is not None or len(curve.x) == 1:
                line.set_marker("o")
            if curve.errors is not None:
                axes.errorbar(curve.x, curve.y, curve.errors, fmt="none", ecolor=line.get_color())
        # Continue the colour cycle after the curves.
        for number, (name, value) in enumerate(levels.items(), start=len(curves)):
            axes.axhline(value, color=f"C{number}", linestyle="--", label=name)
        values = np.concatenate([curve.y for curve in curves])
        finite = values[np.isfinite(values)]
        if min(finite) > 0 and max(finite) / min(finite) > _LOG_RATIO:
            axes.set_yscale("log")
        handles, names = axes.get_legend_handles_labels()
        if len(names) > 1:
            axes.figure.legend(handles, names, loc="outside lower left", ncols=2, frameon=False)

    return Chart(_svg(draw, "outer iteration", y_label), description)


def histogram(counts: Mapping[int, int], x_label: str, description: str) -> Chart:
    """Draw a histogram of whole numbers from the count of each; ``counts`` must not be empty.

    If the range has more than 40 numbers, each bar stands for several neighbouring numbers.
    """
    # Bars of equal width, with edges halfway between whole numbers.
    low, high = min(counts), max(counts)
    size = math.ceil((high - low + 1) / _BARS)
    edges = [edge - 0.5 for edge in range(low, high + size + 1, size)]

    def draw(axes: Axes) -> None:
        axes.hist([*counts], edges, weights=[*counts.values()], rwidth=0.8)
        axes.yaxis.set_major_locator(MaxNLocator("auto", integer=True))

    return Chart(_svg(draw, x_label, "draws"), description)


def smoothed(values: Numbers, window: int) -> Numbers:
    """Return the moving average of the finite values, or NaN where a window has none."""
    # Sum and count the finite values in each window: np.convolve would spread a NaN over a window.
    finite, ones = np.isfinite(values), np.ones(window)
    counts = np.convolve(finite, ones, "same")
    sums = np.convolve(np.where(finite, values, 0), ones, "same")
    return np.where(counts > 0, sums / counts.clip(1), np.nan)


def _svg(draw: Callable[[Axes], None], x_label: str, y_label: str) -> str:
    """Draw on new axes and return the figure as a data URL."""
    # Start from the defaults, because the user's matplotlibrc would change the chart.
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **_STYLE}):
        figure = Figure(figsize=(5, 2.9), layout="constrained")
        axes = figure.add_subplot(xlabel=x_label, ylabel=y_label)
        axes.grid(axis="y", color="#d0d7de", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
        draw(axes)
        buffer = io.BytesIO()
        # No date or version in the file: equal charts give equal bytes.
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing)
    return data_url("image/svg+xml", buffer.getvalue())
