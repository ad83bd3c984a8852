"""Names of the files in the folder of `trajmatch run` and `trajmatch demo`."""

from __future__ import annotations

from pathlib import Path


class RunFolder:
    """Paths in the folder of a run.

    Attributes:
        path: The folder.
        store: Store of the experts.
        artifact: The distilled set.
        initial_picture: Picture of the images that the distillation begins with.
        distilled_picture: Picture of the distilled images.
        evaluation: Folder of the records of the evaluation until the summary is written.
        summary: Numbers of the run.
        report: Report of the run: one page.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = path / "experts"
        self.artifact = path / "distilled.safetensors"
        self.initial_picture = path / "initial.png"
        self.distilled_picture = path / "distilled.png"
        self.evaluation = path / "evaluation"
        self.summary = path / "summary.json"
        self.report = path / "report.html"

    def contents(self) -> list[tuple[Path, str]]:
        """Return the files, each with a few words for a reader."""
        return [
            (self.store, "experts"),
            (self.artifact, "distilled images, with all that is needed to use them"),
            (self.initial_picture, "the images at the beginning"),
            (self.distilled_picture, "the images at the end"),
            (self.summary, "the numbers"),
            (self.report, "all of it on one page, for a browser"),
        ]
