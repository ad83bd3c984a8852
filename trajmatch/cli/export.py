"""`trajmatch export`: a distilled set in a form that other programs read."""

from __future__ import annotations

from trajmatch.exchange.config import ExportConfig


def run(argv: list[str]) -> int:
    """Runs the command.

    Args:
        argv: Arguments after the command's name.

    Returns:
        The exit status.
    """
    from trajmatch.cli.arguments import parse

    config = parse(ExportConfig, argv, "trajmatch export", "file")

    from trajmatch.exchange.exporting import export

    print(export(config))
    return 0
