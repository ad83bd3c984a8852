"""Names of the files in the folder of `trajmatch run` and `trajmatch demo`."""

from pathlib import Path


class RunFolder:
    """Paths of the files in the folder of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = path / "experts"
        self.artifact = path / "distilled.safetensors"
        self.initial_picture = path / "initial.png"  # images before the first iteration
        self.distilled_picture = path / "distilled.png"
        self.evaluation = path / "evaluation"  # records; removed once the summary is written
        self.summary = path / "summary.json"
        self.report = path / "report.html"

    def contents(self) -> list[tuple[Path, str]]:
        """Return the output files, each with a short description."""
        return [
            (self.store, "experts"),
            (self.artifact, "distilled images, with all that is needed to use them"),
            (self.initial_picture, "the images at the beginning"),
            (self.distilled_picture, "the images at the end"),
            (self.summary, "scores and times"),
            (self.report, "report for a browser"),
        ]
