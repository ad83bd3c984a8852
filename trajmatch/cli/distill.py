"""`trajmatch distill`: makes a distilled set from an expert store, or from real images alone."""

import sys
from dataclasses import replace

from trajmatch.distill.config import DistillConfig


def run(argv: list[str]) -> None:
    """Run the command with its arguments."""
    from trajmatch.cli.arguments import parse, recipe_of

    recipe = recipe_of(argv)
    config = parse(DistillConfig, argv, "trajmatch distill", defaults=recipe.distill)

    # Import these, and torch with them, only now: --help and wrong arguments do not need them.
    from trajmatch.cli.device import with_device
    from trajmatch.cli.health import print_health
    from trajmatch.cli.progress import Progress
    from trajmatch.data.sources import of_recipe, say_other_data
    from trajmatch.distill import distill
    from trajmatch.distill.memory_plan import Forecast
    from trajmatch.experts import Store
    from trajmatch.parallel import joined
    from trajmatch.progress import duration

    def announce(forecast: Forecast) -> None:
        print(
            f"{forecast.seconds:.3g} s per outer iteration, "
            f"{duration(forecast.seconds * config.iterations)} for all {config.iterations}; "
            f"{forecast}",
            file=sys.stderr,
        )

    config = with_device(config)
    if recipe.data and config.experts is None:
        data = of_recipe(config.data or recipe.data, recipe.data, recipe.name)
        config = replace(config, data=data)
    elif recipe.data and config.experts is not None:
        # The experts determine the data set: warn if the recipe is for another one.
        name = Store.open(config.experts).manifest["dataset"]["name"]
        if name != recipe.data:
            say_other_data(f"{name} (of {config.experts})", recipe.data, recipe.name)
    with joined(config.device, config.timeout) as ranks:
        quiet = config.quiet or not ranks.is_rank_0
        if not quiet:
            print_health(config)
        with Progress(config.iterations, "distill", quiet) as progress:
            result = distill(config, progress, ranks, None if config.quiet else announce)
    if not quiet:
        print(f"{config.out}: {len(result.images)} images, step size {result.lr:.4g}")
        print(f"{config.log_path}: metrics")
