"""Settings of a report: the flags of ``trajmatch report``."""

from dataclasses import dataclass
from pathlib import Path

from trajmatch import files
from trajmatch.run_folder import RunFolder
from trajmatch.schema import Settings


@dataclass(frozen=True, kw_only=True)
class ReportConfig(Settings):
    """Write a report of a run: one HTML file, which needs no internet connection to view."""

    run: Path
    """Folder of `trajmatch run` or `trajmatch demo`, or a file that `trajmatch distill` wrote."""
    out: Path | None = None
    """The report to write. Default: report.html in the folder; for a file, the same name ending in
    .html."""
    log: Path | None = None
    """Metrics of the run. Default: the log that `trajmatch distill` put beside the set."""
    snapshots: Path | None = None
    """File of images at several iterations. Default: the one beside the distilled set."""
    evaluation: tuple[Path, ...] = ()
    """One or more files with the output of `trajmatch eval --json`. They add the table of networks
    and the baselines."""

    def __post_init__(self) -> None:
        """Check the fields, and that the name of the report ends in .html or .htm."""
        super().__post_init__()
        self.expect("out", self.report.suffix.lower() in (".html", ".htm"), "named *.html")

    @property
    def artifact(self) -> Path:
        """Path of the distilled set."""
        return RunFolder(self.run).artifact if self.run.is_dir() else self.run

    @property
    def report(self) -> Path:
        """Path of the report."""
        folder = RunFolder(self.run)
        default = folder.report if self.run.is_dir() else files.beside(self.run, ".html")
        return self.out or default

    @property
    def summary(self) -> Path | None:
        """Path of the ``summary.json`` next to the distilled set; None if there is none."""
        # The summary describes only the run's own distilled set, not other files in the folder.
        folder = RunFolder(self.artifact.parent)
        known = folder.artifact == self.artifact and folder.summary.exists()
        return folder.summary if known else None
