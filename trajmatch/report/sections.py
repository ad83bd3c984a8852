"""The sections of a report, each from what there is of a run."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trajmatch.evaluate.scores import difference_error, sampling_error
from trajmatch.progress import duration
from trajmatch.recipes.deviations import deviations
from trajmatch.report import images, losses
from trajmatch.report.charts import Curve, Level, histogram, line_chart, smoothed, thinned
from trajmatch.report.history import Evaluation, History
from trajmatch.report.html import Html, element, join, table
from trajmatch.report.run import Run
from trajmatch.report.scores import TRAINED_ON, Score

#: A mean over so many parts of a run is drawn over the loss itself.
_WINDOWS = 40
#: Stages of `trajmatch run` in their order.
_STAGES = ("experts", "distillation", "evaluation")
_KINDS = ("second", "third", "fourth")


def facts(run: Run) -> Html:
    """What it is, in a few numbers."""
    distilled = run.artifact
    channels, height, width = distilled.images.shape[1:]
    colours = {1: "grey", 3: "colour"}.get(channels, f"{channels} channels")
    named = {
        "data set": distilled.dataset_name,
        **_real_images(run),
        "distilled images": f"{len(distilled.images)} in {distilled.num_classes} classes",
        "size": f"{width} x {height} pixels, {colours}",
        "labels": {"index": "classes", "logit": "learned logits"}[distilled.label_kind],
        "step size": f"{distilled.lr:.6g}",
        "iterate": distilled.selection,
        "distilled for": run.network,
        "seed": str(distilled.seed),
        **_experts(run),
    }
    parts = [
        element("div", element("dt", name), element("dd", value)) for name, value in named.items()
    ]
    return element("dl", *parts, class_="facts")


def accuracy(run: Run) -> Html:
    """Test accuracies beside the baselines, and over the iterations."""
    parts = [_score_tables(run.scores, run.test_images)] if run.scores else []
    evaluations = run.history.evaluations if run.history else []
    if evaluations:
        parts.append(_accuracy_chart(evaluations, run.scores, run.network))
    notes = []
    if not evaluations:
        notes.append(
            element(
                "p",
                "This run was not evaluated on its way; ",
                element("code", "trajmatch distill --eval-every"),
                " does that.",
            )
        )
    if not run.scores:
        notes.append(
            element(
                "p",
                "There is no evaluation beside real images; ",
                element("code", "trajmatch eval FILE --json"),
                " makes one, for ",
                element("code", "trajmatch report --evaluation"),
                ".",
            )
        )
    elif all(score.trained_on != "whole_real" for score in run.scores):
        notes.append(
            element(
                "p",
                "What networks reach that are trained on all real images is not known here; ",
                element("code", "trajmatch eval FILE --whole-real --json"),
                " finds it, for ",
                element("code", "trajmatch report --evaluation"),
                ".",
            )
        )
    return join(element("div", *parts, class_="charts"), *notes)


def course(run: Run) -> Html:
    """Matching loss and what it means, step size, what was drawn, and what was refused."""
    told = run.history
    if told is None or not told.iterations:
        return element("p", "There is no log of this run beside its result.")
    charts = [
        *_loss_chart(told),
        *_step_size_chart(told),
        *_draws(told.start_epochs, "start epoch", "How often each start epoch s was drawn"),
        *_draws(told.experts, "expert", "How often each expert was drawn"),
    ]
    verdict = element("p", losses.verdict(told.losses, run.artifact.recipe))
    return join(verdict, element("div", *charts, class_="charts"), _updates(told))


def time(run: Run) -> Html:
    """What it took."""
    taken = run.stage_seconds
    stages = [name for name in _STAGES if name in taken]
    stages += [name for name in taken if name not in _STAGES]
    rows = [[name, duration(taken[name])] for name in stages]
    known = [each for each in run.history.seconds if each is not None] if run.history else []
    if known:
        rows += [
            ["outer iterations", duration(sum(known))],
            ["one of them (median)", f"{statistics.median(known):.3g} s"],
            ["the longest", f"{max(known):.3g} s"],
        ]
    if not rows:
        return element("p", "The run did not leave what it took.")
    caption = "Time (of a stage that was interrupted, that of its last part)"
    return table(["part", "time"], rows, caption)


def pictures(run: Run) -> Html:
    """The images on their way, and as they are."""
    scaled = (
        "Preprocessing (normalisation, ZCA) is undone. Distilled pixels leave the range of real "
        "ones: what is shown is the band of 2.5 standard deviations around the mean"
    )
    channels = run.artifact.images.shape[1]
    colours = {
        1: "",
        2: " The two channels are shown as red and green.",
        3: "",
    }.get(channels, f" Of the {channels} channels the first three are shown, as RGB.")
    note = element("p", scaled, f", for each iteration by itself.{colours}", class_="note")
    on_the_way = (
        element("p", "The images of earlier iterations are not beside the file.")
        if run.snapshots is None
        else images.over_iterations(run.snapshots, run.artifact.class_names)
    )
    return join(note, on_the_way, images.of_classes(run.artifact))


def configuration(run: Run) -> Html:
    """All that decides the result, as the file has it."""
    distilled = run.artifact
    made = {
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
    rows = [[name, element("code", value)] for name, value in _flat(made)]
    whole = json.dumps(made, indent=2, sort_keys=True)
    return join(
        _command(run),
        _deviations(run),
        table(["setting", "value"], rows, "The configuration, as it is in the distilled file"),
        element("details", element("summary", "The same as JSON"), element("pre", whole)),
    )


def _real_images(run: Run) -> dict[str, str]:
    if run.training_images is None or run.test_images is None:
        return {}
    return {"real images": f"{run.training_images} for training, {run.test_images} for testing"}


def _experts(run: Run) -> dict[str, str]:
    """The experts' accuracy, which the distilled images cannot be expected to exceed."""
    found = run.expert_accuracies
    if not found:
        return {}
    mean, low, high = statistics.fmean(found), min(found), max(found)
    told = f"{mean:.1f} % (from {low:.1f} to {high:.1f}, {len(found)} experts)"
    return {"test accuracy of experts": told}


def _command(run: Run) -> Html:
    if not run.command:
        return Html("")
    return element("p", "Made by ", element("code", run.command))


def _deviations(run: Run) -> Html:
    """Settings that differ from the recipe, field by field."""
    name = run.artifact.recipe.get("recipe")
    if name is None:
        return element("p", "The run named no recipe.")
    if run.recipe is None:
        sentence = f"The recipe {name} cannot be read here, so nothing is compared with it."
        return element("p", sentence)
    found = deviations(run.recipe, run.artifact)
    if not found:
        return element("p", f"All settings are those of {name}.")
    rows = [[each.name, json.dumps(each.wanted), json.dumps(each.found)] for each in found]
    heads = ["setting", "in the recipe", "in this run"]
    return table(heads, rows, f"Settings that differ from the recipe {name}")


def _test_set_error(scores: Sequence[Score], test_images: int | None) -> list[Html]:
    """Sampling error that a test set of this size implies, in a sentence for each architecture."""
    if test_images is None:
        return []
    sentences = []
    for network in dict.fromkeys(score.network for score in scores):
        found = {each.trained_on: each for each in scores if each.network == network}
        score = found.get("distilled")
        if score is None:
            continue
        error = sampling_error(score.mean, test_images)
        sentence = (
            f"{network}: {score.mean:.1f} % has a standard error of {error:.1f} points because "
            f"there are {test_images} test images, whatever the number of networks."
        )
        if "random_real" in found:
            other = found["random_real"].mean
            gain, error = score.mean - other, difference_error(score.mean, other, test_images)
            verdict = "more" if abs(gain) > 2 * error else "no more"
            sentence += (
                f" Distilled images are {gain:+.1f} ± {error:.1f} points from random real images: "
                f"{verdict} than twice the standard error."
            )
        sentences.append(element("p", sentence, class_="note"))
    return sentences


def _score_tables(scores: Sequence[Score], test_images: int | None) -> Html:
    """Rows are networks, columns what they were trained on; one table for each protocol."""
    parts = []
    for protocol in dict.fromkeys(score.protocol for score in scores):
        chosen = [score for score in scores if score.protocol == protocol]
        columns = [key for key in TRAINED_ON if any(key == each.trained_on for each in chosen)]
        rows = []
        for network in dict.fromkeys(score.network for score in chosen):
            cells = {each.trained_on: each.shown for each in chosen if each.network == network}
            rows.append([network, *(cells.get(key, "") for key in columns)])
        caption = "Test accuracy in percent, mean ± standard deviation over networks" + (
            f"; protocol {protocol}" if protocol else ""
        )
        heads = ["network", *(TRAINED_ON[key] for key in columns)]
        parts.append(table(heads, rows, caption))
    parts += _test_set_error(scores, test_images)
    if diverged := sum(score.diverged or 0 for score in scores):
        sentence = f"{diverged} of the networks diverged and count as getting no image right."
        parts.append(element("p", sentence, class_="note"))
    return element("div", *parts)


def _accuracy_chart(
    evaluations: Sequence[Evaluation], scores: Sequence[Score], network: str
) -> Html:
    splits = [*dict.fromkeys(each.split for each in evaluations)]
    curves = [
        Curve(
            f"distilled images ({split})",
            kind,
            [(each.iteration, each.mean) for each in evaluations if each.split == split],
            [each.std for each in evaluations if each.split == split],
        )
        for split, kind in zip(splits, ("first", "second"), strict=False)
    ]
    baselines = {
        score.trained_on: score
        for score in reversed(scores)
        if score.network == network and score.trained_on != "distilled"
    }
    levels = [
        Level(f"{TRAINED_ON[key]}: {baselines[key].mean:.1f}", kind, baselines[key].mean)
        for key, kind in zip([key for key in TRAINED_ON if key in baselines], _KINDS, strict=False)
    ]
    last = evaluations[-1]
    return line_chart(
        curves,
        levels,
        x_label="outer iteration",
        y_label="accuracy %",
        description=f"Accuracy of fresh networks trained on the images of the moment: "
        f"{evaluations[0].mean:.1f} % at iteration {evaluations[0].iteration}, {last.mean:.1f} ± "
        f"{last.std:.1f} % at iteration {last.iteration}, over {last.seeds} networks",
    )


def _loss_chart(told: History) -> list[Html]:
    finite = [loss for loss in told.losses if loss is not None]
    if not finite:
        return []
    window = max(1, len(told.losses) // _WINDOWS)
    means = smoothed(told.losses, window)
    known = [mean for mean in means if mean is not None]
    chart = line_chart(
        [
            Curve("each iteration", "raw", thinned(told.iterations, told.losses)),
            Curve(f"mean of {window}", "first", thinned(told.iterations, means)),
        ],
        x_label="outer iteration",
        y_label="matching loss L",
        description=f"Matching loss: {known[0]:.4g} at first, {known[-1]:.4g} at last (means of "
        f"{window}); between {min(finite):.4g} and {max(finite):.4g}",
    )
    return [chart]


def _step_size_chart(told: History) -> list[Html]:
    known = [step for step in told.step_sizes if step is not None]
    if not known:
        return []
    chart = line_chart(
        [Curve("step size", "first", thinned(told.iterations, told.step_sizes))],
        x_label="outer iteration",
        y_label="step size η",
        description=f"Learned step size of the student: {known[0]:.4g} at first, {known[-1]:.4g} "
        "at last",
    )
    return [chart]


def _draws(counts: Mapping[int, int], name: str, description: str) -> list[Html]:
    if not counts:
        return []
    span = f"{description}: {sum(counts.values())} draws of {min(counts)} to {max(counts)}"
    return [histogram(counts, x_label=name, description=span)]


def _updates(told: History) -> Html:
    refused = sum(told.refusals.values())
    applied = len(told.iterations) - refused - told.skipped
    rows = [
        ["applied", str(applied)],
        ["refused", str(refused)],
        *([f"refused: {cause}", str(count)] for cause, count in told.refusals.most_common()),
        ["left out for their loss (--skip-above)", str(told.skipped)],
    ]
    return table(["updates of the images", "number"], rows, "What became of the updates")


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Settings of settings with dotted names, and their values as JSON has them."""
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value)
