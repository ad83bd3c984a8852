"""Names of the files in the folder of `trajmatch run` and `trajmatch demo`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunFolder:
    """Paths in the folder of a run.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def store(self) -> Path:
        """Store of the experts."""
        return self.path / "experts"

    @property
    def artifact(self) -> Path:
        """The distilled set."""
        return self.path / "distilled.safetensors"

    @property
    def initial_picture(self) -> Path:
        """Picture of the images that the distillation begins with."""
        return self.path / "initial.png"

    @property
    def distilled_picture(self) -> Path:
        """Picture of the distilled images."""
        return self.path / "distilled.png"

    @property
    def evaluation(self) -> Path:
        """Folder of the records of the evaluation until the summary is written."""
        return self.path / "evaluation"

    @property
    def summary(self) -> Path:
        """Numbers of the run."""
        return self.path / "summary.json"

    @property
    def report(self) -> Path:
        """Report of the run: one page."""
        return self.path / "report.html"

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
