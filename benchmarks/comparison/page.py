"""The tables of a comparison, in Markdown."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import chain, product
from statistics import fmean
from typing import Any, NamedTuple

from comparison.methods import (
    EXPERTS,
    METHODS,
    PAPERS,
    REAL,
    REAL_SOFT,
    Method,
    Scale,
    distill_fields,
    experts_of,
)
from doc_pages import table

from trajmatch.evaluate import Score

NOT_MEASURED = "These numbers are still to be measured."
NOT_COMPLETE = "The record is not complete yet: cells say how many of their runs it has."


def result(record: dict[str, Any] | None) -> str:
    """Return the result in Markdown, or a sentence that there is none yet.

    Args:
        record: The record of :func:`compare_methods.compare`, complete or not; None: there is none.
    """
    if record is None or "identity" not in record:
        return NOT_MEASURED
    ipcs = sorted(map(int, record["identity"]["scale"]["distill"]))
    per_class = [f"{ipc} per class" for ipc in ipcs]
    methods = [name for name in METHODS if name in record["identity"]["methods"]]
    cells = {
        name: [_Cell.of(record, name, str(ipc)) for ipc in ipcs]
        for name in (*REAL, *REAL_SOFT, *methods)
        # records of the first release lack real images with soft labels
        if name not in REAL_SOFT or name in record["cells"]
    }
    accuracies = table(
        ["test accuracy, %", "labels", *chain(*([each, "bytes"] for each in per_class))],
        (
            [name, own[0].labels, *chain(*((each.accuracy, each.stored) for each in own))]
            for name, own in cells.items()
        ),
    )
    courses = table(
        ["distillation", "per class", "loss, first tenth", "last tenth", "step size", "minutes"],
        (
            [
                name,
                str(ipc),
                *cell.course,
                cell.minutes(record["seconds"], f"{name}, {ipc} per class"),
            ]
            for name in methods
            for ipc, cell in zip(ipcs, cells[name], strict=True)
        ),
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
    complete = all(each.is_complete for own in cells.values() for each in own)
    parts = (accuracies, courses, experts, made)
    return "\n\n".join(parts if complete else (NOT_COMPLETE, *parts))


def settings(scale: Scale, methods: Mapping[str, Method] = PAPERS) -> str:
    """Return each method's experts and all fields of its configuration, in Markdown."""
    rows = []
    for (name, method), ipc in product(methods.items(), scale.distill):
        fields = distill_fields(name, scale, ipc)
        del fields["ipc"], fields["iterations"]
        rows.append([name, str(ipc), method.experts, ", ".join(map(_field, fields.items()))])
    kinds = (
        [kind, ", ".join(map(_field, {**scale.experts, **fields}.items()))]
        for kind, fields in experts_of(methods).items()
    )
    return "\n\n".join(
        (
            table(["experts", "fields of `ExpertConfig`"], kinds),
            table(["method", "IPC", "experts", "fields of `DistillConfig`"], rows),
        )
    )


class _Cell(NamedTuple):
    """The finished runs of a method at a number of images per class, and the number wanted."""

    runs: Sequence[Mapping[str, Any]]
    wanted: int

    @classmethod
    def of(cls, record: Mapping[str, Any], name: str, ipc: str) -> _Cell:
        scale, seeds = record["identity"]["scale"], record["identity"]["scale"]["seeds"]
        found = record["cells"].get(name, {}).get(ipc, [])
        runs = [run for run in found if len(run["accuracies"]) == scale["networks"]]
        return cls(runs, seeds if isinstance(seeds, int) else seeds[ipc])

    @property
    def is_complete(self) -> bool:
        return len(self.runs) == self.wanted

    @property
    def accuracy(self) -> str:
        """Over seeds, of the mean over the networks of each."""
        if not self.runs:
            return "-"
        missing = "" if self.is_complete else f" ({len(self.runs)} of {self.wanted})"
        return _mean_and_std([fmean(run["accuracies"]) for run in self.runs]) + missing

    @property
    def labels(self) -> str:
        return self.runs[0]["labels"] if self.runs else "-"

    @property
    def stored(self) -> str:
        return f"{self.runs[0]['stored_bytes']:,}" if self.runs else "-"

    @property
    def course(self) -> list[str]:
        """Loss over the first and the last tenth of the iterations, and step size at the end."""
        if not self.runs:
            return ["-", "-", "-"]
        losses = (fmean(run["matching_loss"][end] for run in self.runs) for end in (0, 1))
        step_size = fmean(run["step_size"] for run in self.runs)
        return [*(f"{loss:.3f}" for loss in losses), f"{step_size:.2g}"]

    def minutes(self, seconds: Mapping[str, float], piece: str) -> str:
        """Return the minutes of a run, the mean over all runs."""
        return f"{seconds[piece] / 60 / self.wanted:.0f}" if self.is_complete else "-"


def _mean_and_std(values: Sequence[float]) -> str:
    """Mean and standard deviation of the population; the mean of one value alone."""
    score = Score(tuple(values), {})
    return f"{score.mean:.1f} ± {score.std:.1f}" if len(values) > 1 else f"{score.mean:.1f}"


def _followers(kind: str, methods: Collection[str]) -> str:
    return ", ".join(name for name in methods if METHODS[name].experts == kind)


def _field(item: tuple[str, Any]) -> str:
    name, value = item
    if isinstance(value, tuple):
        value = " + ".join(value)
    return f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
