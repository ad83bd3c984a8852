"""`trajmatch demo`: the whole pipeline on the shipped data."""

from __future__ import annotations

import shlex
from typing import Any

from trajmatch.demo import DemoConfig, run_demo
from trajmatch.pipeline import table
from trajmatch.run_folder import RunFolder


def run(argv: list[str]) -> int:
    """Runs the command.

    Args:
        argv: Arguments after the command's name.

    Returns:
        The exit status.
    """
    from trajmatch.cli.arguments import parse

    config = parse(DemoConfig, argv, "trajmatch demo")

    from trajmatch.cli.device import with_device
    from trajmatch.cli.progress import Progress

    config = with_device(config)
    command = shlex.join(["trajmatch", "demo", *argv])
    summary = run_demo(config, lambda total, title: Progress(total, title, config.quiet), command)
    if not config.quiet:
        print_summary(summary, config.folder)
    return 0


def print_summary(summary: dict[str, Any], folder: RunFolder) -> None:
    """Prints what came of a pipeline, and where it is.

    Args:
        summary: What :func:`trajmatch.pipeline.run_pipeline` returned.
        folder: Where it wrote.
    """
    print(table(summary))
    if "improvement" in summary:
        print(
            f"{summary['improvement']:+.1f} points over random real images (standard error "
            f"{summary['improvement_error']:.1f}, from {summary['test_images']} test images)"
        )
    print(f"{summary['seconds']:.0f} s in all")
    for path, what in folder.contents():
        if path.exists():
            print(f"{path}: {what}")
