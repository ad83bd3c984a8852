"""`trajmatch export`: a distilled set in a form that other programs read."""

from __future__ import annotations

from trajmatch.exchange.config import ExportConfig


def run(argv: list[str]) -> int:
    """Run the command on the arguments after its name; return the exit status."""
    from trajmatch.cli.arguments import parse

    config = parse(ExportConfig, argv, "trajmatch export", "file")

    from trajmatch.exchange.export import export

    print(export(config))
    return 0
