"""`trajmatch report`: what a run did, as one HTML file."""

from __future__ import annotations

from trajmatch.report import ReportConfig


def run(argv: list[str]) -> int:
    """Runs the command.

    Args:
        argv: Arguments after the command's name.

    Returns:
        The exit status.
    """
    from trajmatch.cli.arguments import parse

    config = parse(ReportConfig, argv, "trajmatch report", "run")

    from trajmatch.report import write_report

    write_report(config)
    print(config.report)
    return 0
