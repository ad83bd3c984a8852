"""`trajmatch export`: writes a distilled set in a format that other programs read."""

from __future__ import annotations

from trajmatch.exchange.config import ExportConfig


def run(argv: list[str]) -> None:
    """Run the command with its arguments."""
    from trajmatch.cli.arguments import parse

    config = parse(ExportConfig, argv, "trajmatch export", "file")

    from trajmatch.exchange.export import export

    print(export(config))
