"""`trajmatch report`: writes a report of a run as one HTML file."""

from __future__ import annotations

from trajmatch.report.config import ReportConfig


def run(argv: list[str]) -> None:
    """Run the command with its arguments."""
    from trajmatch.cli.arguments import parse

    config = parse(ReportConfig, argv, "trajmatch report", "run")

    from trajmatch.report.page import write_report

    write_report(config)
    print(config.report)
