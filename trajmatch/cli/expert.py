"""`trajmatch expert`: trains experts and keeps their trajectories in a store."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from trajmatch.cli.output import aligned
from trajmatch.experts.config import ExpertConfig

if TYPE_CHECKING:
    from trajmatch.experts import Store


def run(argv: list[str]) -> None:
    """Run the command with its arguments."""
    from trajmatch.cli.arguments import parse, recipe_of

    recipe = recipe_of(argv)
    defaults = {**recipe.expert, "data": recipe.data or None}
    config = parse(ExpertConfig, argv, "trajmatch expert", defaults=defaults)

    # Import these, and torch with them, only now: --help and wrong arguments do not need them.
    from trajmatch.cli.device import with_device
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
        _print_health(store)


def _print_health(store: Store) -> None:
    """Print each expert's losses, test result and distances moved; warn about bad experts."""
    from trajmatch import networks, ops
    from trajmatch.cli.health import warn
    from trajmatch.experts.health import examine

    error = store.loss == "mse"
    tested = "test error" if error else "test accuracy %"
    rows = [("expert", "first loss", "last loss", tested, "first move", "last move")]
    for expert in range(store.num_experts):
        metrics = store.metrics(expert)
        losses, steps = (
            (f"{values[0]:.3f}", f"{values[-1]:.3f}")
            for values in (metrics["train_loss"], metrics["displacement"])
        )
        tested = f"{metrics['test_error']:.4g}" if error else f"{metrics['test_accuracy']:.1f}"
        rows.append((str(expert), *losses, tested, *steps))
    network = networks.build(store.manifest["network"])
    print(
        f"{store.path}: {store.num_experts} experts, {store.manifest['network']['name']} with "
        f"{networks.num_parameters(network)} parameters, steps run by: {ops.engine_for(network)}; "
        f"trained to {store.reached} (move: distance that the parameters moved in that epoch)\n"
    )
    print(aligned(*rows, rule=True))
    warn(examine(store))
