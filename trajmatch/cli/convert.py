"""`trajmatch convert`: files of the papers' scripts to ours, and back."""

from __future__ import annotations

from trajmatch.exchange.config import ConvertConfig


def run(argv: list[str]) -> int:
    """Runs the command.

    Args:
        argv: Arguments after the command's name.

    Returns:
        The exit status.
    """
    from trajmatch.cli.arguments import parse

    config = parse(ConvertConfig, argv, "trajmatch convert", "source")

    from trajmatch.cli.progress import Progress
    from trajmatch.exchange.buffers import find_buffers
    from trajmatch.exchange.conversion import convert

    files = len(find_buffers(config.source))
    with Progress(files, "files of trajectories", config.quiet or files == 0) as progress:
        made = convert(config, progress)
    print(made)
    return 0
