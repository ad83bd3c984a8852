"""`trajmatch demo`: the whole pipeline on the shipped data."""

from __future__ import annotations

from trajmatch.demo import DemoConfig, run_demo, table


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
        print(table(summary))
        print(f"{summary['improvement']:+.1f} points, {summary['seconds']:.0f} s in all")
        for path, what in (
            (config.store, "experts"),
            (config.artifact, "distilled images, with all that is needed to use them"),
            (config.initial_picture, "the images at the beginning"),
            (config.distilled_picture, "the images at the end"),
            (config.summary, "the numbers"),
        ):
            print(f"{path}: {what}")
    return 0
