"""`trajmatch demo`: the whole pipeline on the shipped data."""

from __future__ import annotations

from typing import Any

from trajmatch.demo import DemoConfig, run_demo
from trajmatch.pipeline import Folder, table


def run(argv: list[str]) -> int:
    """Runs the command.

    Args:
        argv: Arguments after the command's name.

    Returns:
        The exit status.
    """
    from trajmatch.cli.arguments import parse

    config = parse(DemoConfig, argv, "trajmatch demo")

    from trajmatch.cli.progress import Progress

    summary = run_demo(config, lambda total, title: Progress(total, title, config.quiet))
    if not config.quiet:
        print_summary(summary, config.folder)
    return 0


def print_summary(summary: dict[str, Any], folder: Folder) -> None:
    """Prints what came of a pipeline, and where it is.

    Args:
        summary: What :func:`trajmatch.pipeline.run_pipeline` returned.
        folder: Where it wrote.
    """
    print(table(summary))
    print(f"{summary['improvement']:+.1f} points, {summary['seconds']:.0f} s in all")
    for path, what in folder.contents():
        if path.exists():
            print(f"{path}: {what}")
