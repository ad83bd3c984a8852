"""`trajmatch convert`: converts files of the papers' scripts to ours, and back."""

from trajmatch.exchange.config import ConvertConfig


def run(argv: list[str]) -> None:
    """Run the command with its arguments."""
    from trajmatch.cli.arguments import parse

    config = parse(ConvertConfig, argv, "trajmatch convert", "source")

    from trajmatch.cli.progress import Progress
    from trajmatch.exchange.convert import convert
    from trajmatch.exchange.trajectories import find_trajectories

    # Only trajectories take long enough for a progress display.
    files = len(find_trajectories(config.source))
    with Progress(files, "files of trajectories", config.quiet or files == 0) as progress:
        made = convert(config, progress)
    print(made)
