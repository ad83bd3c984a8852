"""`trajmatch expert`: trains experts and keeps their trajectories in a store."""

import sys
from dataclasses import replace

from trajmatch.experts.config import ExpertConfig


def run(argv: list[str]) -> None:
    """Run the command with its arguments."""
    from trajmatch.cli.arguments import parse, recipe_of

    recipe = recipe_of(argv)
    defaults = {**recipe.expert, "data": recipe.data or None}
    config = parse(ExpertConfig, argv, "trajmatch expert", defaults=defaults)

    # Import these, and torch with them, only now: --help and wrong arguments do not need them.
    from trajmatch.cli.device import with_device
    from trajmatch.cli.health import print_experts
    from trajmatch.cli.progress import Progress
    from trajmatch.data.sources import of_recipe
    from trajmatch.experts import train_experts
    from trajmatch.parallel import joined

    config = with_device(config)
    # The data set given by --data takes over the options of the recipe's data set.
    config = replace(config, data=of_recipe(config.data, recipe.data, recipe.name))
    epochs = config.num_experts * config.trained_epochs

    def announce(space: str) -> None:
        if not config.quiet:
            print(space, file=sys.stderr)

    with joined(config.device) as ranks:
        quiet = config.quiet or not ranks.is_rank_0
        with Progress(epochs, "expert epochs", quiet) as progress:
            store = train_experts(config, progress, ranks, announce)
    if not quiet:
        print_experts(store)
