"""Numbers, tables and charts of a report."""

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from trajmatch.artifact import Artifact, Description
from trajmatch.evaluate.sets import IN_TABLES, named, per_kb
from trajmatch.progress import duration
from trajmatch.recipes import Recipe
from trajmatch.recipes.deviations import deviations
from trajmatch.report.charts import PALE, Chart, Curve, histogram, line_chart, smoothed
from trajmatch.report.history import Iteration
from trajmatch.report.parts import Table
from trajmatch.report.run import Run
from trajmatch.report.scores import Accuracy, Results, Scores
from trajmatch.schema import settings_of

#: The smoothed loss is a moving average over 1 / _WINDOWS of the run.
_WINDOWS = 40
#: Stages of `trajmatch run` in their order.
_STAGES = ("experts", "distillation", "evaluation")


def score_tables(results: Results) -> list[Table]:
    """Return one table per protocol, with a row per training set and columns per network."""
    tables = []
    for protocol in dict.fromkeys(str(each.protocol) for each in results.networks):
        # Build the table by columns, one or two for each network, and transpose it at the end.
        networks = by_network(each for each in results.networks if str(each.protocol) == protocol)
        keys = [key for key in IN_TABLES if any(key in of for of in networks.values())]
        stored = [results.sets.get(key) for key in keys]  # not in files of release 0.1
        columns = [
            ["trained on", *map(named, keys)],
            ["stored values", *(f"{each.stored_values:,}" if each else "" for each in stored)],
            ["bytes", *(f"{each.stored_bytes:,}" if each else "" for each in stored)],
        ]
        for network, of in networks.items():
            found = [of.get(key) for key in keys]
            pairs = zip(found, stored, strict=True)
            per_byte = (per_kb(a.mean, b.stored_bytes) if a and b else "" for a, b in pairs)
            columns.append([network, *(str(each or "") for each in found)])
            # For target vectors the scores are errors, which have no meaningful value per kB.
            errors = any(each.errors for each in of.values())
            if not errors:
                columns.append(["% per kB", *per_byte])
        measure = "Mean squared test error" if errors else "Test accuracy in percent"
        caption = f"{measure}, mean ± standard deviation over networks"
        caption += f"; protocol {protocol}" if protocol else ""
        heads, *rows = zip(*columns, strict=True)
        tables.append(Table(caption, heads, rows))
    return tables


def accuracy_chart(run: Run) -> Chart | None:
    """Draw the evaluations during the run, with the baselines; None if nothing was evaluated."""
    if not (evaluations := run.history.evaluations):
        return None
    curves = []
    for split in dict.fromkeys(each.split for each in evaluations):
        of = [each for each in evaluations if each.split == split]
        x, y = [each.iteration for each in of], [each.mean for each in of]
        curves.append(Curve(f"distilled images ({split})", x, y, [each.std for each in of]))
    # Draw the scores of real images as levels. Evaluations of a run train its own network, so
    # scores of other networks would not be comparable.
    baselines = by_network(run.results.networks).get(str(run.artifact.network["name"]), {})
    baselines.pop("distilled", None)
    measure, form, unit = "accuracy", ".1f", " %"
    if run.artifact.loss == "mse":
        measure, form, unit = "error", ".4g", ""
    levels = {f"{named(key)}: {each.mean:{form}}": each.mean for key, each in baselines.items()}
    first, last = evaluations[0], evaluations[-1]
    text = (
        f"{measure.capitalize()} of fresh networks trained on the images of an iteration: "
        f"{first.mean:{form}}{unit} at iteration {first.iteration}, "
        f"{last.mean:{form}} ± {last.std:{form}}{unit} at iteration "
        f"{last.iteration}, over {last.seeds} networks"
    )
    return line_chart(curves, f"{measure}{unit}", text, levels)


def course_charts(told: Sequence[Iteration]) -> Iterator[Chart]:
    """Draw loss and step size, and histograms of the sampled start epochs, experts and windows."""
    x = [each.iteration for each in told]
    # As floats, None becomes NaN, which leaves a gap in the curve.
    losses = np.array([each.loss for each in told], float)
    steps = np.array([each.step_size for each in told], float)
    known = losses[np.isfinite(losses)]
    # Only trajectory matching has start epochs.
    loss = "matching loss" if any(each.start_epochs for each in told) else "loss"
    if len(known):
        window = max(1, len(losses) // _WINDOWS)
        means = smoothed(losses, window)
        curves = [Curve("each iteration", x, losses, colour=PALE)]
        curves.append(Curve(f"mean of {window}", x, means))
        first, last = means[np.isfinite(means)][[0, -1]]
        text = (
            f"{loss.capitalize()}: {first:.4g} at first, {last:.4g} at last (means of {window}); "
            f"between {known.min():.4g} and {known.max():.4g}"
        )
        yield line_chart(curves, f"{loss} L", text, {})
    known = steps[np.isfinite(steps)]
    if len(known):
        text = f"Step size of the student: {known[0]:.4g} at first, {known[-1]:.4g} at last"
        yield line_chart([Curve("step size", x, steps)], "step size η", text, {})
    for name, counts in (
        ("start epoch s", Counter(epoch for each in told for epoch in each.start_epochs)),
        ("expert", Counter(expert for each in told for expert in each.experts)),
        ("window start K", Counter(step for each in told for step in each.window_starts)),
    ):
        if counts:
            text = f"How often each {name} was drawn: {counts.total()} draws of {min(counts)} to "
            yield histogram(counts, name, f"{text}{max(counts)}")


def updates(told: Sequence[Iteration]) -> list[list[str]]:
    """Count applied, refused and skipped updates."""
    causes = Counter(each.refused for each in told if each.refused is not None)
    skipped = sum(each.skipped for each in told)
    return [
        ["applied", str(len(told) - causes.total() - skipped)],
        ["refused", str(causes.total())],
        *([f"refused: {cause}", str(count)] for cause, count in causes.most_common()),
        ["skipped because of their loss (--skip-above)", str(skipped)],
    ]


def times(run: Run) -> list[list[str]]:
    """List the durations of stages and outer iterations."""
    taken = run.results.stage_seconds
    # The known stages in their order, then any others.
    order = [*_STAGES, *taken]
    rows = [[name, duration(taken[name])] for name in sorted(taken, key=order.index)]
    if known := [each.seconds for each in run.history.iterations if each.seconds is not None]:
        rows += [
            ["outer iterations", duration(sum(known))],
            ["median iteration", f"{statistics.median(known):.3g} s"],
            ["the longest", f"{max(known):.3g} s"],
        ]
    return rows


def settings(distilled: Artifact) -> dict[str, Any]:
    """Return the description in the distilled file, without class names and scores."""
    said = settings_of(distilled, Description)
    del said["class_names"], said["scores"]
    preprocessing = distilled.preprocessing.spec()
    return {**said, "preprocessing": preprocessing, "fingerprint": distilled.fingerprint}


def deviation_rows(recipe: Recipe, distilled: Artifact) -> list[list[str]]:
    """List the settings that differ from the recipe, with both values."""
    found = deviations(recipe, distilled)
    return [[each.name, json.dumps(each.wanted), json.dumps(each.found)] for each in found]


def flat(made: Mapping[str, Any], prefix: str = "") -> Iterator[list[str]]:
    """Yield name and value of each setting as text; nested settings have dotted names."""
    for name, value in made.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield [f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value)]


def by_network(found: Iterable[Scores]) -> dict[str, dict[str, Accuracy]]:
    """Group accuracies by network, then by training set; of several, keep the first."""
    networks: dict[str, dict[str, Accuracy]] = {}
    for each in found:
        # Scores of earlier files override those of later files.
        networks[each.network] = {**each.found, **networks.get(each.network, {})}
    return networks
