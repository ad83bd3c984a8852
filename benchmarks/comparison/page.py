"""The tables of a comparison, in Markdown."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import chain, product
from statistics import fmean
from typing import Any

from comparison.methods import (
    EXPERTS,
    METHODS,
    PAPERS,
    REAL,
    REAL_SOFT,
    Method,
    Scale,
    distill_fields,
)
from doc_pages import table

from trajmatch.evaluate import Score

NOT_COMPLETE = "The record is not complete yet: these numbers are still to be measured."


def is_complete(record: dict[str, Any] | None) -> bool:
    """True if a record has every run of every method, with all its networks.

    Records of the first release lack real images with soft labels.
    """
    if record is None or "identity" not in record:
        return False
    return all(_is_measured(record, name) for name in (*REAL, *record["identity"]["methods"]))


def _is_measured(record: dict[str, Any], name: str) -> bool:
    scale, cells = record["identity"]["scale"], record["cells"].get(name, {})
    seeds = scale["seeds"]
    return all(
        [len(run["accuracies"]) for run in cells.get(ipc, [])]
        == [scale["networks"]] * (seeds if isinstance(seeds, int) else seeds[ipc])
        for ipc in scale["distill"]
    )


def result(record: dict[str, Any] | None) -> str:
    """Return the result in Markdown, or a sentence that there is none yet.

    Args:
        record: The record of :func:`compare_methods.compare`, complete or not; None: there is none.
    """
    if record is None or not is_complete(record):
        return NOT_COMPLETE
    ipcs = sorted(map(int, record["identity"]["scale"]["distill"]))
    per_class = [f"{ipc} per class" for ipc in ipcs]
    methods = [name for name in METHODS if name in record["identity"]["methods"]]
    soft = [name for name in REAL_SOFT if _is_measured(record, name)]
    accuracies = table(
        ["test accuracy, %", "labels", *chain(*([each, "bytes"] for each in per_class))],
        (_accuracies(record["cells"][name], ipcs, name) for name in (*REAL, *soft, *methods)),
    )
    courses = table(
        ["matching loss, first and last tenth; step size", *per_class],
        ([name, *(_course(record["cells"][name][str(ipc)]) for ipc in ipcs)] for name in methods),
    )
    experts = table(
        ["experts", "followed by", "test accuracy, %"],
        (
            [kind, _followers(kind, methods), _mean_and_std(record["experts"][kind])]
            for kind in EXPERTS
            if kind in record["experts"]
        ),
    )
    hours = sum(record["seconds"].values()) / 3600
    commits = ", ".join(commit or "unknown" for commit in record["commits"])
    made = f"Made in {hours:.1f} hours on {record['device']}, commit {commits}."
    return "\n\n".join((accuracies, courses, experts, made))


def settings(scale: Scale, methods: Mapping[str, Method] = PAPERS) -> str:
    """Return each method's experts and all fields of its configuration, in Markdown."""
    rows = []
    for (name, method), ipc in product(methods.items(), scale.distill):
        fields = distill_fields(name, scale, ipc)
        del fields["ipc"], fields["iterations"]
        rows.append([name, str(ipc), method.experts, ", ".join(map(_field, fields.items()))])
    kinds = (
        [kind, ", ".join(map(_field, {**scale.experts, **fields}.items()))]
        for kind, fields in EXPERTS.items()
    )
    return "\n\n".join(
        (
            table(["experts", "fields of `ExpertConfig`"], kinds),
            table(["method", "IPC", "experts", "fields of `DistillConfig`"], rows),
        )
    )


def _accuracies(cells: Mapping[str, Any], ipcs: Sequence[int], name: str) -> list[str]:
    """Over seeds, of the mean over the networks of each; with labels and bytes of the first."""
    row = [name, cells[str(ipcs[0])][0]["labels"]]
    for runs in (cells[str(ipc)] for ipc in ipcs):
        mean = _mean_and_std([fmean(run["accuracies"]) for run in runs])
        row += [mean, f"{runs[0]['stored_bytes']:,}"]
    return row


def _mean_and_std(values: Sequence[float]) -> str:
    score = Score(tuple(values), {})
    return f"{score.mean:.1f} ± {score.std:.1f}"


def _course(runs: Sequence[dict[str, Any]]) -> str:
    first, last = (fmean(run["matching_loss"][end] for run in runs) for end in (0, 1))
    return f"{first:.3f}, {last:.3f}; {fmean(run['step_size'] for run in runs):.2g}"


def _followers(kind: str, methods: Collection[str]) -> str:
    return ", ".join(name for name in methods if METHODS[name].experts == kind)


def _field(item: tuple[str, Any]) -> str:
    name, value = item
    if isinstance(value, tuple):
        value = " + ".join(value)
    return f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
