"""The facts, tables and charts of a report, each from the files of a run."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from trajmatch.evaluate.scores import difference_error, sampling_error
from trajmatch.progress import duration
from trajmatch.recipes.deviations import deviations
from trajmatch.report.charts import PALE, Chart, Curve, histogram, line_chart, smoothed
from trajmatch.report.history import Iteration
from trajmatch.report.parts import Table
from trajmatch.report.run import Run
from trajmatch.report.scores import TRAINED_ON, Accuracy, Scores

#: Parts of a run over which the loss is averaged.
_WINDOWS = 40
#: Stages of `trajmatch run` in their order.
_STAGES = ("experts", "distillation", "evaluation")


def facts(run: Run) -> dict[str, str]:
    """Name the distilled set in a few numbers."""
    distilled, sizes = run.artifact, run.sizes
    channels, height, width = distilled.images.shape[1:]
    colours = {1: "grey", 3: "colour"}.get(channels, f"{channels} channels")
    found = {
        "data set": distilled.dataset_name,
        "real images": f"{sizes.training_images} for training, {sizes.test_images} for testing",
        "distilled images": f"{len(distilled.images)} in {distilled.num_classes} classes",
        "size": f"{width} x {height} pixels, {colours}",
        "labels": {"index": "classes", "logit": "learned logits"}[distilled.label_kind],
        "step size": f"{distilled.lr:.6g}",
        "iterate": distilled.selection,
        "distilled for": str(distilled.network["name"]),
        "seed": str(distilled.seed),
    }
    if not (sizes.training_images and sizes.test_images):
        del found["real images"]
    # The distilled images cannot be expected to exceed the accuracy of the experts.
    if run.summary and (experts := run.summary.experts).accuracies:
        each = experts.accuracies
        reached = f", after epoch {experts.epoch} of {experts.epochs}" if experts.epoch else ""
        found["test accuracy of experts"] = (
            f"{statistics.fmean(each):.1f} % (from {min(each):.1f} to {max(each):.1f}, "
            f"{len(each)} experts{reached})"
        )
    return found


def score_tables(found: Sequence[Scores]) -> list[Table]:
    """Tabulate accuracies: rows are networks, columns training sets; a table per protocol."""
    tables = []
    for protocol in dict.fromkeys(str(each.protocol) for each in found):
        networks = _by_network(each for each in found if str(each.protocol) == protocol)
        columns = [key for key in TRAINED_ON if any(key in each for each in networks.values())]
        caption = "Test accuracy in percent, mean ± standard deviation over networks"
        rows = [
            [network, *(str(of.get(key, "")) for key in columns)]
            for network, of in networks.items()
        ]
        tables.append(
            Table(
                f"{caption}; protocol {protocol}" if protocol else caption,
                ["network", *(TRAINED_ON[key] for key in columns)],
                rows,
            )
        )
    return tables


def errors(found: Sequence[Scores], test_images: int | None) -> list[str]:
    """Say how far the size of the test set leaves each accuracy open, and what diverged."""
    sentences = []
    for network, accuracies in _by_network(found).items():
        if test_images is None or "distilled" not in accuracies:
            continue
        mean = accuracies["distilled"].mean
        sentence = (
            f"{network}: {mean:.1f} % has a standard error of "
            f"{sampling_error(mean, test_images):.1f} points because there are {test_images} test "
            "images, whatever the number of networks."
        )
        if "random_real" in accuracies:
            other = accuracies["random_real"].mean
            error = difference_error(mean, other, test_images)
            verdict = "more" if abs(mean - other) > 2 * error else "no more"
            sentence += (
                f" Distilled images are {mean - other:+.1f} ± {error:.1f} points from random real "
                f"images: {verdict} than twice the standard error."
            )
        sentences.append(sentence)
    diverged = sum(each.diverged or 0 for scores in found for each in scores.found.values())
    if diverged:
        sentences.append(
            f"{diverged} of the networks diverged and count as getting no image right."
        )
    return sentences


def accuracy_chart(run: Run) -> Chart | None:
    """Draw the accuracies on the way beside the baselines; None where there are none."""
    evaluations = run.history.evaluations if run.history else []
    if not evaluations:
        return None
    curves = []
    for split in dict.fromkeys(each.split for each in evaluations):
        of = [each for each in evaluations if each.split == split]
        x, y = [each.iteration for each in of], [each.mean for each in of]
        curves.append(Curve(f"distilled images ({split})", x, y, [each.std for each in of]))
    baselines = _by_network(run.scores).get(str(run.artifact.network["name"]), {})
    first, last = evaluations[0], evaluations[-1]
    return line_chart(
        curves,
        "accuracy %",
        f"Accuracy of fresh networks trained on the images of the moment: {first.mean:.1f} % at "
        f"iteration {first.iteration}, {last.mean:.1f} ± {last.std:.1f} % at iteration "
        f"{last.iteration}, over {last.seeds} networks",
        {
            f"{TRAINED_ON[key]}: {each.mean:.1f}": each.mean
            for key, each in baselines.items()
            if key != "distilled"
        },
    )


def course_charts(told: Sequence[Iteration]) -> list[Chart]:
    """Draw the matching loss, the step size, and how often each start and expert was drawn."""
    x = [each.iteration for each in told]
    losses, steps = (
        [math.nan if y is None else y for y in values]
        for values in ([each.loss for each in told], [each.step_size for each in told])
    )
    charts = []
    if known := _finite(losses):
        window = max(1, len(losses) // _WINDOWS)
        means = smoothed(losses, window)
        curves = [
            Curve("each iteration", x, losses, colour=PALE),
            Curve(f"mean of {window}", x, means),
        ]
        first, last = _finite(means)[0], _finite(means)[-1]
        text = (
            f"Matching loss: {first:.4g} at first, {last:.4g} at last (means of {window}); between "
            f"{min(known):.4g} and {max(known):.4g}"
        )
        charts.append(line_chart(curves, "matching loss L", text))
    if known := _finite(steps):
        text = f"Learned step size of the student: {known[0]:.4g} at first, {known[-1]:.4g} at last"
        charts.append(line_chart([Curve("step size", x, steps)], "step size η", text))
    for name, counts in (
        ("start epoch s", Counter(epoch for each in told for epoch in each.start_epochs)),
        ("expert", Counter(expert for each in told for expert in each.experts)),
    ):
        text = f"How often each {name} was drawn: {counts.total()} draws of {min(counts)} to "
        charts.append(histogram(counts, name, f"{text}{max(counts)}"))
    return charts


def updates(told: Sequence[Iteration]) -> Table:
    """Count the updates that were applied, refused and left out."""
    causes = Counter(each.refused for each in told if each.refused is not None)
    skipped = sum(each.skipped for each in told)
    rows = [
        ["applied", str(len(told) - causes.total() - skipped)],
        ["refused", str(causes.total())],
        *([f"refused: {cause}", str(count)] for cause, count in causes.most_common()),
        ["left out for their loss (--skip-above)", str(skipped)],
    ]
    return Table("Fate of the updates", ["updates of the images", "number"], rows)


def time(run: Run) -> Table:
    """Tabulate the time of the stages and of the outer iterations."""
    taken = run.summary.stage_seconds if run.summary else {}
    order = [*_STAGES, *taken]
    rows = [[name, duration(taken[name])] for name in sorted(taken, key=order.index)]
    told = run.history.iterations if run.history else []
    if known := [each.seconds for each in told if each.seconds is not None]:
        rows += [
            ["outer iterations", duration(sum(known))],
            ["one of them (median)", f"{statistics.median(known):.3g} s"],
            ["the longest", f"{max(known):.3g} s"],
        ]
    caption = "Time (of a stage that was interrupted, that of its last part)"
    return Table(caption, ["part", "time"], rows)


def settings(run: Run) -> dict[str, Any]:
    """Return all that decides the result, as the file has it."""
    distilled = run.artifact
    return {
        "recipe": distilled.recipe,
        "seed": distilled.seed,
        "versions": distilled.versions,
        "network": distilled.network,
        "augmentation": distilled.dsa,
        "preprocessing": "ZCA whitening" if distilled.zca else "normalisation by channel",
        "selection": distilled.selection,
        "fingerprints": {
            "data set": distilled.dataset_fingerprint,
            "distilled set": distilled.fingerprint,
        },
    }


def settings_table(made: Mapping[str, Any]) -> Table:
    """Tabulate settings, with dotted names for settings of settings."""
    caption = "The configuration, as it is in the distilled file"
    return Table(caption, ["setting", "value"], [*_flat(made)], "code")


def deviations_table(run: Run) -> Table | None:
    """Tabulate the settings that differ from the recipe; None where it cannot be read."""
    if run.recipe is None:
        return None
    found = deviations(run.recipe, run.artifact)
    rows = [[each.name, json.dumps(each.wanted), json.dumps(each.found)] for each in found]
    caption = f"Settings that differ from the recipe {run.artifact.recipe['recipe']}"
    return Table(caption, ["setting", "in the recipe", "in this run"], rows)


def _by_network(found: Iterable[Scores]) -> dict[str, dict[str, Accuracy]]:
    """Gather the accuracies of each network by the sets that it was trained on."""
    networks: dict[str, dict[str, Accuracy]] = {}
    for each in found:
        networks[each.network] = {**each.found, **networks.get(each.network, {})}
    return networks


def _finite(values: Sequence[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _flat(made: Mapping[str, Any], prefix: str = "") -> Iterator[list[str]]:
    for name, value in made.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield [f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value)]
