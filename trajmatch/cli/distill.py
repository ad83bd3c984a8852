"""`trajmatch distill`: from a store of experts to a distilled set."""

from __future__ import annotations

from trajmatch.distill.config import DistillConfig


def run(argv: list[str]) -> int:
    """Runs the command.

    Args:
        argv: Arguments after the command's name.

    Returns:
        The exit status.
    """
    from trajmatch.cli.arguments import parse, recipe_of

    recipe = recipe_of(argv)
    defaults = recipe.distill if recipe else {}
    config = parse(DistillConfig, argv, "trajmatch distill", defaults=defaults)

    from trajmatch.cli.health import print_health
    from trajmatch.cli.progress import Progress
    from trajmatch.distill import distill

    if not config.quiet:
        print_health(config)
    with Progress(config.iterations, "distill", config.quiet) as progress:
        result = distill(config, progress)
    if not config.quiet:
        print(f"{config.out}: {len(result.images)} images, step size {result.lr:.4g}")
        print(f"{config.log_path}: metrics")
    return 0
